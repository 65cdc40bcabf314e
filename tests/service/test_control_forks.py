"""Forks and clones: one snapshot, many children, each with a result of its own."""

import asyncio

import pytest
from control_fixture import InWorld, in_world
from control_world import World

from alcove.control.nodes.client import NodeFullError, NodeNotSavedError
from alcove.control.sandboxes import store
from alcove.control.sandboxes.states import State
from alcove.control.usage import store as usage
from alcove.wire.ids import SandboxId

__all__ = ["in_world"]


async def fork(world: World, sandbox_id: str, **body: object) -> list[dict]:
    answer = await world.http.post(f"/sandboxes/{sandbox_id}/fork", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def row(world: World, sandbox_id: str) -> store.Sandbox:
    async with world.app.state.db.reading() as tx:
        found = await store.find(tx, SandboxId(sandbox_id))
    assert found is not None
    return found


async def open_usage(world: World) -> int:
    async with world.app.state.db.reading() as tx:
        return await usage.count_open(tx)


def test_a_fork_of_one(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        source = await world.create(
            metadata={"a": "b"}, timeout=500, network={"allowPublicTraffic": False}
        )
        before = (await world.http.get(f"/sandboxes/{source}")).json()
        answer = await world.http.post(f"/sandboxes/{source}/fork")
        assert answer.status_code == 201
        [result] = answer.json()
        child = result["sandbox"]
        assert child["sandboxID"] != source
        assert child["templateID"] == before["templateID"]
        assert child["trafficAccessToken"]
        assert child["envdAccessToken"] != before["envdAccessToken"]
        assert (await world.http.get(f"/sandboxes/{source}")).json() == before

        made = await row(world, child["sandboxID"])
        [saved] = world.node.saved.values()
        assert (made.parent_id, made.root_id, made.depth) == (source, source, 1)
        assert made.origin_snapshot_id == made.snapshot_id == saved.snapshot_id
        assert made.metadata == {"a": "b"}
        assert made.end_at - made.started_at == 15_000_000
        assert await open_usage(world) == 2
        listed = await world.http.get("/v2/sandboxes", params={"metadata": "a=b"})
        assert {entry["sandboxID"] for entry in listed.json()} == {source, child["sandboxID"]}
        events = [event["type"] for event in (await world.http.get("/v1/events")).json()]
        assert events == ["sandbox.started", "sandbox.forked", "sandbox.started"]

        await world.app.state.snapshot_reconciler.step()
        assert world.node.saved == {}
        assert sorted(world.node.running()) == sorted([source, child["sandboxID"]])

    in_world(scenario)


def test_many_children_of_one_snapshot(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        source = await world.create()
        at_once = most = 0

        async def count(method: str) -> None:
            nonlocal at_once, most
            if method == "start":
                at_once += 1
                most = max(most, at_once)
                await asyncio.sleep(0)
                at_once -= 1

        world.node.hold = count
        results = await fork(world, source, count=100, timeout=60)
        ids = {result["sandbox"]["sandboxID"] for result in results}
        assert len(ids) == 100
        assert len(world.node.saved) == world.node.calls["save"] == 1
        assert 1 < most <= 8
        [result] = await fork(world, ids.pop())
        assert (await row(world, result["sandbox"]["sandboxID"])).depth == 2
        assert (await row(world, result["sandbox"]["sandboxID"])).root_id == source

    in_world(scenario)


def test_the_first_child_does_not_end_before_the_last_one_is_there(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        source = await world.create(timeout=3600)
        starts = 0

        async def slow(method: str) -> None:
            nonlocal starts
            starts += method == "start"
            if starts > 8 and method == "start":
                world.clock.forward(10)
                await world.app.state.sandbox_reconciler.expire()

        world.node.hold = slow
        results = await fork(world, source, count=12, timeout=15)
        now = world.clock()
        for result in results:
            child = await row(world, result["sandbox"]["sandboxID"])
            assert child.state is State.RUNNING
            assert 0 <= now + 15_000_000 - child.end_at < 1_000, "the clock of the world ticks"

    in_world(scenario)


@pytest.mark.parametrize(
    "body", [{"count": 0}, {"count": 101}, {"count": "1"}, {"timeout": 0}, {"timeout": 10**9}]
)
def test_bodies_that_are_refused(in_world: InWorld, body: dict) -> None:
    async def scenario(world: World) -> None:
        source = await world.create()
        for what in ("fork", "clone"):
            answer = await world.http.post(f"/sandboxes/{source}/{what}", json=body)
            assert answer.status_code == 400, answer.text
        assert world.node.calls.get("save") is None

    in_world(scenario)


def test_the_limit_of_the_team(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        source = await world.create()
        answer = await world.http.post(f"/sandboxes/{source}/fork", json={"count": 5})
        assert answer.status_code == 400
        strict = {"count": 4, "strict": True}
        answer = await world.http.post(f"/sandboxes/{source}/clone", json=strict)
        assert answer.status_code == 429
        assert world.node.calls.get("save") is None
        results = await fork(world, source, count=4)
        assert [sorted(result) for result in results] == [["sandbox"]] * 3 + [["error"]]
        assert results[3]["error"]["code"] == 429
        answer = await world.http.post(f"/sandboxes/{source}/fork", json={})
        assert answer.status_code == 429

    in_world(scenario, concurrent_sandboxes=4)


def test_of_what_there_is_no_fork(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        killed = await world.create()
        await world.http.delete(f"/sandboxes/{killed}")
        for what in ("fork", "clone"):
            for sandbox_id in ("inothing", killed):
                answer = await world.http.post(f"/sandboxes/{sandbox_id}/{what}", json={})
                assert answer.status_code == 404

    in_world(scenario)


def test_children_that_fail_leave_nothing(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        source = await world.create()
        starts = 0

        async def fail_some(method: str) -> None:
            nonlocal starts
            world.node.fail.pop("start", None)
            if method == "start":
                starts += 1
                if starts % 2 == 0:
                    world.node.fail["start"] = NodeFullError("full")

        world.node.hold = fail_some
        results = await fork(world, source, count=4)
        good = [result["sandbox"]["sandboxID"] for result in results if "sandbox" in result]
        bad = [result["error"] for result in results if "error" in result]
        assert (len(good), len(bad)) == (2, 2)
        assert bad[0]["code"] == 503
        assert sorted(world.node.running()) == sorted([source, *good])
        assert await open_usage(world) == 3
        await world.app.state.snapshot_reconciler.step()
        assert world.node.saved == {}

    in_world(scenario)


def test_a_save_that_fails_forks_nothing(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        source = await world.create()
        world.node.fail["save"] = NodeNotSavedError("x")
        answer = await world.http.post(f"/sandboxes/{source}/fork", json={"count": 3})
        assert (answer.status_code, answer.json()["error_code"]) == (500, "snapshot_failed")
        assert world.node.running() == [source]
        assert await open_usage(world) == 1

    in_world(scenario)


@pytest.mark.parametrize(("when", "status"), [("save", 404), ("start", 201)])
def test_a_kill_amid_a_fork(in_world: InWorld, when: str, status: int) -> None:
    async def scenario(world: World) -> None:
        source = await world.create()

        async def kill_first(method: str) -> None:
            if method == when:
                world.node.hold = None
                await world.http.delete(f"/sandboxes/{source}")

        world.node.hold = kill_first
        answer = await world.http.post(f"/sandboxes/{source}/fork", json={"count": 3})
        assert answer.status_code == status
        assert source not in world.node.running()
        children = len(answer.json()) if status == 201 else 0
        assert len(world.node.running()) == children == await open_usage(world)
        await world.app.state.snapshot_reconciler.step()
        assert world.node.saved == {}

    in_world(scenario)


def test_a_caller_that_goes_away_gets_its_children_all_the_same(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        source = await world.create()
        saving, release = asyncio.Event(), asyncio.Event()

        async def hold(method: str) -> None:
            if method == "save":
                saving.set()
                await release.wait()

        world.node.hold = hold
        caller = asyncio.create_task(fork(world, source, count=2))
        await saving.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        world.app.state.snapshots.changed.clear()
        release.set()
        await world.app.state.snapshots.changed.wait()
        assert len(world.node.running()) == 3

    in_world(scenario)


def test_a_clone_of_a_running_sandbox(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        source = await world.create(timeout=700)
        answer = await world.http.post(
            f"/sandboxes/{source}/clone", json={"count": 2, "strict": True, "nodeID": "any"}
        )
        assert answer.status_code == 201
        body = answer.json()
        assert body["snapshotTemplateId"]
        assert len(body["sandboxes"]) == 2
        for entry in body["sandboxes"]:
            assert sorted(entry) == [
                "clientID",
                "envdAccessToken",
                "envdVersion",
                "sandboxID",
                "trafficAccessToken",
            ]
            made = await row(world, entry["sandboxID"])
            assert 0 <= made.end_at - made.started_at - 700_000_000 < 1_000

    in_world(scenario)


def test_a_strict_clone_is_all_or_nothing(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        source = await world.create()
        starts = 0

        async def fail_last(method: str) -> None:
            nonlocal starts
            starts += method == "start"
            if method == "start" and starts == 3:
                world.node.fail["start"] = NodeFullError("full")

        world.node.hold = fail_last
        body = {"count": 3, "strict": True}
        answer = await world.http.post(f"/sandboxes/{source}/clone", json=body)
        assert answer.status_code == 503
        assert world.node.running() == [source]
        assert await open_usage(world) == 1

    in_world(scenario)


def test_a_paused_sandbox_is_cloned_and_not_forked(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        source = await world.create(timeout=700)
        await world.http.post(f"/sandboxes/{source}/pause")
        [saved] = world.node.saved
        for what in ("fork", "snapshots", "commit"):
            answer = await world.http.post(f"/sandboxes/{source}/{what}", json={})
            assert answer.status_code == 409, what
            assert "is paused and cannot be" in answer.json()["message"]
            assert "resume it first" in answer.json()["message"]
        answer = await world.http.post(f"/sandboxes/{source}/clone", json={"count": 2})
        assert answer.status_code == 201
        for entry in answer.json()["sandboxes"]:
            made = await row(world, entry["sandboxID"])
            assert 0 <= made.end_at - made.started_at - 300_000_000 < 1_000
            assert (made.snapshot_id, made.depth) == (saved, 1)
            assert not world.node.specs[SandboxId(entry["sandboxID"])].reboot
        assert (await row(world, source)).state.value == "paused"
        assert (await world.http.get(f"/sandboxes/{source}")).json()["state"] == "paused"
        await world.app.state.snapshot_reconciler.step()
        assert list(world.node.saved) == [saved]
        await world.http.delete(f"/sandboxes/{source}")
        await world.app.state.snapshot_reconciler.step()
        assert world.node.saved == {}
        assert len(world.node.running()) == 2

    in_world(scenario)


def test_a_clone_of_one_paused_without_memory_boots(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        source = await world.create()
        await world.http.post(f"/sandboxes/{source}/pause", json={"memory": False})
        answer = await world.http.post(f"/sandboxes/{source}/clone", json={})
        [entry] = answer.json()["sandboxes"]
        assert world.node.specs[SandboxId(entry["sandboxID"])].reboot

    in_world(scenario)


def test_what_is_asked_while_it_is_being_paused(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        source = await world.create()
        statuses: dict[str, int] = {}

        async def amid(method: str) -> None:
            if method != "save":
                return
            world.node.hold = None
            for what in ("fork", "clone", "snapshots", "reset"):
                answer = await world.http.post(f"/sandboxes/{source}/{what}", json={})
                statuses[what] = answer.status_code
                assert "is being paused" in answer.json()["message"]
                assert answer.headers["Should-Retry"] == "true"

        world.node.hold = amid
        answer = await world.http.post(f"/sandboxes/{source}/pause")
        assert answer.status_code == 204
        assert statuses == {"fork": 409, "clone": 409, "snapshots": 409, "reset": 409}
        assert world.node.calls["save"] == 1

    in_world(scenario)
