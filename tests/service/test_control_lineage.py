"""Our own routes: detail, tree, checkpoints and rollback."""

import uuid
from urllib.parse import quote

import pytest
from control_fixture import InWorld, in_world
from control_world import World

from alcove.control.nodes.client import (
    NodeError,
    NodeFullError,
    NodeSnapshotError,
    NodeTimeoutError,
)
from alcove.control.sandboxes import store
from alcove.control.usage import store as usage
from alcove.wire.errors import ErrorCode
from alcove.wire.ids import SandboxId
from alcove.wire.states import StopReason

__all__ = ["in_world"]


async def checkpoint(world: World, sandbox_id: str, **body: object) -> dict:
    answer = await world.http.post(f"/v1/sandboxes/{sandbox_id}/checkpoints", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def history(world: World, sandbox_id: str) -> list[dict]:
    return (await world.http.get(f"/v1/sandboxes/{sandbox_id}/checkpoints")).json()


async def detail(world: World, sandbox_id: str) -> dict:
    return (await world.http.get(f"/v1/sandboxes/{sandbox_id}")).json()


async def rollback(world: World, sandbox_id: str, to: str, **body: object) -> int:
    answer = await world.http.post(
        f"/v1/sandboxes/{sandbox_id}/rollback", json={"checkpoint": to} | body
    )
    return answer.status_code


async def open_usage(world: World) -> int:
    async with world.app.state.db.reading() as tx:
        return await usage.count_open(tx)


async def row(world: World, sandbox_id: str) -> store.Sandbox:
    async with world.app.state.db.reading() as tx:
        found = await store.find(tx, SandboxId(sandbox_id))
    assert found is not None
    return found


def test_checkpoints_in_their_order(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        sandbox_id = await world.create()
        assert await history(world, sandbox_id) == []
        first = await checkpoint(world, sandbox_id)
        second = await checkpoint(world, sandbox_id, name="n", memory=False)
        assert (first["parentID"], first["current"], first["memory"]) == (None, True, True)
        assert (second["parentID"], second["memory"]) == (first["checkpointID"], False)
        assert second["names"] == ["default/n:default"]
        assert first["sizeBytes"] > second["sizeBytes"] > 0

        assert await rollback(world, sandbox_id, first["checkpointID"]) == 201
        third = await checkpoint(world, sandbox_id)
        assert third["parentID"] == first["checkpointID"]
        shown = await history(world, sandbox_id)
        assert [entry["current"] for entry in shown] == [False, False, True]

        path = f"/v1/sandboxes/{sandbox_id}/checkpoints"
        assert (await world.http.delete(f"{path}/{second['checkpointID']}")).status_code == 204
        assert (await world.http.delete(f"{path}/{second['checkpointID']}")).status_code == 404
        by_name = quote(third["snapshotID"], safe="")
        assert (await world.http.delete(f"{path}/{by_name}")).status_code == 204
        shown = await history(world, sandbox_id)
        assert [entry["checkpointID"] for entry in shown] == [first["checkpointID"]]

    in_world(scenario)


def test_a_rollback_of_a_running_sandbox(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        sandbox_id = await world.create(timeout=500, metadata={"a": "b"})
        before = (await world.http.get(f"/sandboxes/{sandbox_id}")).json()
        taken = await checkpoint(world, sandbox_id)
        assert await rollback(world, sandbox_id, taken["snapshotID"]) == 201
        after = (await world.http.get(f"/sandboxes/{sandbox_id}")).json()
        assert after.pop("startedAt") > before.pop("startedAt")
        assert after == before
        spec = world.node.specs[sandbox_id]
        assert (spec.generation, spec.snapshot_id) == (2, taken["checkpointID"])
        assert await open_usage(world) == 1
        shown = await detail(world, sandbox_id)
        assert (shown["generation"], shown["startedFrom"]) == (2, taken["checkpointID"])
        [event] = [
            event
            for event in (await world.http.get("/v1/events")).json()
            if event["type"] == "sandbox.rolled_back"
        ]
        assert event["data"]["snapshot"] == taken["snapshotID"]
        await world.app.state.sandbox_reconciler.step()
        await world.app.state.snapshot_reconciler.step()
        assert world.node.running() == [sandbox_id]
        assert list(world.node.saved) == [taken["checkpointID"]]
        assert await rollback(world, sandbox_id, taken["checkpointID"], timeout=50) == 201
        made = await row(world, sandbox_id)
        assert (made.generation, made.end_at - made.started_at <= 50_000_000) == (3, True)

    in_world(scenario)


def test_a_rollback_of_a_paused_sandbox(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        sandbox_id = await world.create()
        taken = await checkpoint(world, sandbox_id)
        await world.http.post(f"/sandboxes/{sandbox_id}/pause")
        assert len(world.node.saved) == 2
        assert await rollback(world, sandbox_id, taken["checkpointID"]) == 201
        assert world.node.running() == [sandbox_id]
        await world.app.state.snapshot_reconciler.step()
        assert list(world.node.saved) == [taken["checkpointID"]]
        assert await open_usage(world) == 1

    in_world(scenario)


def test_to_what_nothing_is_rolled_back(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        one, two = await world.create(), await world.create()
        other = await checkpoint(world, two, name="theirs")
        for to in (other["checkpointID"], "theirs", str(uuid.uuid4()), "base", "a b", ""):
            assert await rollback(world, one, to) == 404, to
        assert await rollback(world, "inothing", other["checkpointID"]) == 404
        assert await rollback(world, two, other["checkpointID"], timeout=0) == 400
        await world.http.delete(f"/sandboxes/{two}")
        assert await rollback(world, two, other["checkpointID"]) == 404
        made = await world.create(templateID="theirs")
        assert await rollback(world, made, other["checkpointID"]) == 201
        foreign = await world.other_team()
        for what in ("", "/tree", "/checkpoints"):
            answer = await world.http.get(f"/v1/sandboxes/{made}{what}", headers=foreign)
            assert answer.status_code == 404

    in_world(scenario)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NodeSnapshotError("x", ErrorCode.SNAPSHOT_DAMAGED), 500),
        (NodeSnapshotError("x", ErrorCode.SNAPSHOT_INCOMPATIBLE), 409),
        (NodeFullError("x"), 503),
    ],
)
@pytest.mark.parametrize("state", ["running", "paused"])
def test_a_rollback_that_is_refused_changes_nothing(
    in_world: InWorld, state: str, error: NodeError, status: int
) -> None:
    async def scenario(world: World) -> None:
        sandbox_id = await world.create()
        taken = await checkpoint(world, sandbox_id)
        if state == "paused":
            await world.http.post(f"/sandboxes/{sandbox_id}/pause", json={"memory": False})
        before = await row(world, sandbox_id)
        bills = await open_usage(world)
        world.node.fail["start"] = error
        assert await rollback(world, sandbox_id, taken["checkpointID"]) == status
        del world.node.fail["start"]
        after = await row(world, sandbox_id)
        assert (after.state, after.snapshot_id) == (before.state, before.snapshot_id)
        assert after.pause_memory is before.pause_memory
        assert await open_usage(world) == bills
        await world.app.state.sandbox_reconciler.step()
        await world.app.state.snapshot_reconciler.step()
        assert len(world.node.saved) == (2 if state == "paused" else 1)
        if state == "paused":
            answer = await world.http.post(f"/v2/sandboxes/{sandbox_id}/connect", json={})
            assert answer.status_code == 201
        assert world.node.running() == [sandbox_id]
        assert await rollback(world, sandbox_id, taken["checkpointID"]) == 201

    in_world(scenario)


@pytest.mark.parametrize("error", [NodeTimeoutError("x"), NodeSnapshotError("x")])
def test_when_the_old_life_is_gone_it_is_paused_at_the_checkpoint(
    in_world: InWorld, error: NodeError
) -> None:
    async def scenario(world: World) -> None:
        sandbox_id = await world.create()
        # What an earlier pause kept says nothing of what the checkpoint has.
        await world.http.post(f"/sandboxes/{sandbox_id}/pause", json={"memory": False})
        await world.http.post(f"/v2/sandboxes/{sandbox_id}/connect", json={})
        taken = await checkpoint(world, sandbox_id)

        async def lose(method: str) -> None:
            if method == "start":
                world.node.end(SandboxId(sandbox_id), StopReason.START_FAILED)
                world.node.fail["start"] = error

        world.node.hold = lose
        assert await rollback(world, sandbox_id, taken["checkpointID"]) >= 500
        world.node.hold = None
        del world.node.fail["start"]
        shown = await detail(world, sandbox_id)
        assert (shown["state"], shown["startedFrom"]) == ("paused", taken["checkpointID"])
        assert shown["pause"]["sizeBytes"] == taken["sizeBytes"]
        assert await open_usage(world) == 0
        answer = await world.http.post(f"/v2/sandboxes/{sandbox_id}/connect", json={})
        assert answer.status_code == 201
        spec = world.node.specs[SandboxId(sandbox_id)]
        assert (spec.snapshot_id, spec.reboot) == (taken["checkpointID"], False)

    in_world(scenario)


def test_a_tree(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        root = await world.create()
        [left, right] = (await world.http.post(f"/sandboxes/{root}/fork", json={"count": 2})).json()
        left, right = left["sandbox"]["sandboxID"], right["sandbox"]["sandboxID"]
        taken = await checkpoint(world, left, name="deep")
        made = await world.create(templateID="deep")
        await world.http.delete(f"/sandboxes/{right}")
        for asked in (root, left, right, made):
            tree = (await world.http.get(f"/v1/sandboxes/{asked}/tree")).json()
            assert (tree["rootID"], tree["complete"]) == (root, True)
            members = {member["sandboxID"]: member for member in tree["sandboxes"]}
            assert sorted(members) == sorted([root, left, right, made])
            assert {member["depth"] for member in members.values()} == {0, 1, 2}
            assert sorted(members[root]["children"]) == sorted([left, right])
            assert members[left]["children"] == [made]
            assert members[made]["originSnapshotID"] == taken["checkpointID"]
            assert (members[right]["state"], members[right]["stopReason"]) == ("stopped", "killed")
            assert [entry["checkpointID"] for entry in tree["checkpoints"]] == [
                taken["checkpointID"]
            ]

    in_world(scenario)


def test_a_chain_of_snapshots_and_sandboxes(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        sandbox_id = await world.create()
        for _ in range(12):
            taken = await checkpoint(world, sandbox_id)
            await world.http.delete(f"/sandboxes/{sandbox_id}")
            sandbox_id = await world.create(templateID=taken["snapshotID"])
        assert (await detail(world, sandbox_id))["depth"] == 12
        tree = (await world.http.get(f"/v1/sandboxes/{sandbox_id}/tree")).json()
        assert len(tree["sandboxes"]) == 13

    in_world(scenario)


def test_the_detail_says_what_the_machine_knows(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        sandbox_id = await world.create(timeout=77)
        shown = await detail(world, sandbox_id)
        assert shown["tier"]["name"] == "active"
        assert shown["policy"]["timeout"] == 77
        assert shown["node"]["driver"] == "fake"
        assert (shown["depth"], shown["rootID"], shown["pause"]) == (0, sandbox_id, None)
        world.node.reachable = False
        assert (await detail(world, sandbox_id))["tier"] is None
        world.node.reachable = True
        await world.http.delete(f"/sandboxes/{sandbox_id}")
        assert (await detail(world, sandbox_id))["state"] == "stopped"
        assert (await world.http.get("/v1/sandboxes/inothing")).status_code == 404

    in_world(scenario)
