"""Snapshots: taken, named, listed, used as templates, deleted; and what is refused."""

from urllib.parse import quote

import pytest
from control_fixture import InWorld, in_world
from control_world import World

from alcove.control.nodes.client import (
    NodeError,
    NodeFullError,
    NodeGuestError,
    NodeNotSavedError,
    NodeRefusedError,
    NodeSnapshotError,
    NodeTimeoutError,
    NodeUnreachableError,
)
from alcove.wire.errors import ErrorCode

__all__ = ["in_world"]


async def snapshot(world: World, sandbox_id: str, **body: object) -> dict:
    answer = await world.http.post(f"/sandboxes/{sandbox_id}/snapshots", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def listed(world: World, **query: object) -> list[str]:
    answer = await world.http.get("/snapshots", params=query)
    assert answer.status_code == 200, answer.text
    return [entry["snapshotID"] for entry in answer.json()]


async def delete(world: World, snapshot_id: str) -> int:
    return (await world.http.delete(f"/templates/{quote(snapshot_id, safe='')}")).status_code


async def events(world: World, kind: str) -> list[dict]:
    found = (await world.http.get("/v1/events")).json()
    return [event for event in found if event["type"] == kind]


def test_a_snapshot_without_a_name(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        source = await world.create(metadata={"a": "b"})
        taken = await snapshot(world, source)
        template_id, _, tag = taken["snapshotID"].partition(":")
        assert (tag, taken["names"], len(template_id)) == ("default", [], 20)
        [saved] = world.node.saved.values()
        assert (saved.sandbox_id, saved.memory) == (source, True)
        assert world.node.running() == [source]

        for name in (taken["snapshotID"], template_id):
            made = await world.create(templateID=name)
            assert world.node.specs[made].snapshot_id == saved.snapshot_id
            assert world.node.specs[made].build_id == world.node.specs[source].build_id
        await world.http.delete(f"/sandboxes/{source}")
        assert await world.create(templateID=taken["snapshotID"])
        [event] = await events(world, "sandbox.snapshot_created")
        assert event["sandboxID"] == source
        assert event["data"] == {"snapshot": taken["snapshotID"], "memory": True}

    in_world(scenario)


def test_names_and_tags(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        source = await world.create()
        first = await snapshot(world, source, name=" My-State ")
        assert first == {"snapshotID": "default/my-state:default", "names": [first["snapshotID"]]}
        tagged = await snapshot(world, source, name="default/my-state:v1.2")
        assert tagged["snapshotID"] == "default/my-state:v1.2"
        again = await snapshot(world, source, name="my-state")
        assert again["snapshotID"] == "default/my-state:default"
        newest, middle, oldest = await listed(world)
        assert (newest, middle) == ("default/my-state:default", "default/my-state:v1.2")
        name, _, build_id = oldest.partition(":")
        assert name == "default/my-state"
        assert len(build_id) == 36
        ids = list(world.node.saved)
        for used, expected in (
            ("my-state", 2),
            ("my-state:v1.2", 1),
            ("default/my-state:v1.2", 1),
            (oldest, 0),
        ):
            made = await world.create(templateID=used)
            assert world.node.specs[made].snapshot_id == ids[expected], used
        templates = (await world.http.get("/templates")).json()
        assert [template["aliases"] for template in templates] == [["base"]]

    in_world(scenario)


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("", 400),
        ("a b", 400),
        ("a:", 400),
        (":v1", 400),
        ("a/b/c", 400),
        ("x" * 129, 400),
        ("other/a", 400),
        ("a:0b7c9d4e-1b1a-4b7e-9d39-3f8f0a1c2d3e", 400),
        ("base", 409),
        ("default/base", 409),
    ],
)
def test_names_that_are_refused(in_world: InWorld, name: str, status: int) -> None:
    async def scenario(world: World) -> None:
        source = await world.create()
        answer = await world.http.post(f"/sandboxes/{source}/snapshots", json={"name": name})
        assert answer.status_code == status, answer.text
        assert world.node.saved == {}
        assert await listed(world) == []

    in_world(scenario)


def test_a_list_with_filters_and_pages(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        one, two = await world.create(), await world.create()
        unnamed = (await snapshot(world, one))["snapshotID"]
        named = (await snapshot(world, one, name="n:v1"))["snapshotID"]
        other = (await snapshot(world, two, name="m"))["snapshotID"]
        assert await listed(world) == [other, named, unnamed]
        assert await listed(world, sandboxID=one) == [named, unnamed]
        assert await listed(world, sandboxID=one + "-6532622b") == [named, unnamed]
        for name in ("n", "n:v1", "default/n", "default/n:v1"):
            assert await listed(world, name=name) == [named]
        assert await listed(world, name=unnamed) == [unnamed]
        assert await listed(world, name=unnamed.partition(":")[0]) == [unnamed]
        for nothing in ({"sandboxID": "inone"}, {"sandboxID": "a/b"}, {"name": "n:v2"}):
            assert await listed(world, **nothing) == []
        for name in ("other/n", "base", "???"):
            assert await listed(world, name=name) == []
        assert (await world.http.get("/snapshots", headers=await world.other_team())).json() == []

        found, token = [], ""
        while True:
            page = await world.http.get("/snapshots", params={"limit": 1, "nextToken": token})
            found += [entry["snapshotID"] for entry in page.json()]
            token = page.headers.get("X-Next-Token", "")
            if not token:
                break
        assert found == [other, named, unnamed]
        answer = await world.http.get("/snapshots", params={"nextToken": "!"})
        assert answer.status_code == 400

    in_world(scenario)


def test_a_deletion(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        source = await world.create()
        taken = (await snapshot(world, source, name="mine"))["snapshotID"]
        made = await world.create(templateID=taken)
        answer = await world.http.delete(f"/templates/{quote(taken, safe='')}")
        assert answer.status_code == 400
        assert answer.json()["error_code"] == "snapshot_in_use"
        assert made in answer.json()["message"]
        await world.http.delete(f"/sandboxes/{made}")
        theirs = await world.other_team()
        foreign = await world.http.delete(f"/templates/{quote(taken, safe='')}", headers=theirs)
        assert foreign.status_code == 404
        assert await delete(world, taken) == 204
        assert await delete(world, taken) == 404
        assert await listed(world) == []
        answer = await world.http.post("/v2/sandboxes", json={"templateID": taken})
        assert answer.status_code == 404
        assert world.app.state.snapshots.changed.is_set()
        await world.app.state.snapshot_reconciler.step()
        assert world.node.saved == {}
        assert await delete(world, "base") == 400
        assert await delete(world, "nothing") == 404
        assert await delete(world, "a b") == 404
        [event] = await events(world, "sandbox.snapshot_deleted")
        assert event["data"] == {"snapshot": taken, "reason": "requested"}

    in_world(scenario)


def test_a_deletion_of_one_tag_and_of_all(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        source = await world.create()
        for name in ("mine:a", "mine:b", "mine:c"):
            await snapshot(world, source, name=name)
        assert await delete(world, "default/mine:b") == 204
        assert await listed(world) == ["default/mine:c", "default/mine:a"]
        assert await delete(world, "mine") == 204
        assert await listed(world) == []
        await world.app.state.snapshot_reconciler.step()
        assert world.node.saved == {}
        assert (await snapshot(world, source, name="mine"))["names"] == ["default/mine:default"]

    in_world(scenario)


def test_only_the_disk(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        source = await world.create()
        taken = await snapshot(world, source, memory=False)
        [saved] = world.node.saved.values()
        assert not saved.memory
        assert await world.create(templateID=taken["snapshotID"])

    in_world(scenario)


def test_of_what_no_snapshot_is_taken(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        killed = await world.create()
        await world.http.delete(f"/sandboxes/{killed}")
        expired = await world.create(timeout=5)
        world.clock.forward(6)
        foreign = await world.create()
        for sandbox_id, headers in (
            ("inothing", {}),
            (killed, {}),
            (expired, {}),
            (foreign, await world.other_team()),
        ):
            answer = await world.http.post(
                f"/sandboxes/{sandbox_id}/snapshots", json={}, headers=headers
            )
            assert answer.status_code == 404, sandbox_id
        assert (await world.http.post("/sandboxes/a-b-c/snapshots", json={})).status_code == 400
        assert world.node.calls.get("save") is None

    in_world(scenario)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NodeGuestError("x"), 503, "sandbox_snapshot_guest_agent_unresponsive"),
        (NodeNotSavedError("x"), 500, "snapshot_failed"),
        (NodeFullError("x"), 503, "sandbox_capacity_unavailable"),
        (NodeUnreachableError("x"), 503, "sandbox_no_compatible_node"),
        (NodeTimeoutError("x"), 504, "snapshot_failed"),
        (NodeRefusedError("x"), 409, "conflict"),
    ],
)
def test_a_save_that_fails(in_world: InWorld, error: NodeError, status: int, code: str) -> None:
    async def scenario(world: World) -> None:
        source = await world.create()
        world.node.fail["save"] = error
        answer = await world.http.post(f"/sandboxes/{source}/snapshots", json={"name": "n"})
        assert (answer.status_code, answer.json()["error_code"]) == (status, code)
        assert (await world.http.get(f"/sandboxes/{source}")).json()["state"] == "running"
        assert await listed(world) == []
        await world.app.state.snapshot_reconciler.step()
        assert world.node.calls["delete_snapshot"] == 1
        del world.node.fail["save"]
        assert (await snapshot(world, source, name="n"))["names"]

    in_world(scenario)


def test_a_kill_amid_a_snapshot(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        source = await world.create()

        async def kill_first(method: str) -> None:
            if method == "save":
                world.node.hold = None
                await world.http.delete(f"/sandboxes/{source}")

        world.node.hold = kill_first
        answer = await world.http.post(f"/sandboxes/{source}/snapshots", json={})
        assert answer.status_code == 404
        assert await listed(world) == []

    in_world(scenario)


@pytest.mark.parametrize(
    ("code", "status", "told"),
    [
        (ErrorCode.SNAPSHOT_INCOMPATIBLE, 409, "snapshot_incompatible"),
        (ErrorCode.SNAPSHOT_DAMAGED, 500, "snapshot_damaged"),
        (ErrorCode.NOT_FOUND, 500, "snapshot_damaged"),
    ],
)
def test_a_snapshot_that_cannot_be_started(
    in_world: InWorld, code: ErrorCode, status: int, told: str
) -> None:
    async def scenario(world: World) -> None:
        taken = (await snapshot(world, await world.create()))["snapshotID"]
        world.node.fail["start"] = NodeSnapshotError("x", code)
        answer = await world.http.post("/v2/sandboxes", json={"templateID": taken})
        assert (answer.status_code, answer.json()["error_code"]) == (status, told)
        assert await listed(world) == [taken]
        del world.node.fail["start"]
        assert await world.create(templateID=taken)

    in_world(scenario)


def test_the_old_clients_commit(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        source = await world.create()
        answer = await world.http.post(f"/sandboxes/{source}/commit", json={"alias": "Kept"})
        assert answer.status_code == 201
        body = answer.json()
        assert (body["aliases"], body["names"]) == (["kept"], ["default/kept"])
        assert (body["buildCount"], body["spawnCount"], body["memoryMB"] > 0) == (1, 0, True)
        # Clients of the first line read a date here.
        assert body["lastSpawnedAt"] == body["createdAt"]
        assert await world.create(templateID=body["templateID"])
        assert (await world.http.post(f"/sandboxes/{source}/commit")).status_code == 201

    in_world(scenario)


def test_templates_by_type(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        source = await world.create()
        for _ in range(3):
            await snapshot(world, source)
        query = {"template_type": "snapshot_template", "page": 2, "limit": 2}
        page = (await world.http.get("/v2/templates", params=query)).json()
        assert {k: page[k] for k in ("total", "page", "limit", "totalPages")} == {
            "total": 3,
            "page": 2,
            "limit": 2,
            "totalPages": 2,
        }
        [template] = page["templates"]
        assert template["templateType"] == "snapshot_template"
        assert template["originSandboxID"] == source
        built = {"template_type": "template_build"}
        assert (await world.http.get("/v2/templates", params=built)).json()["total"] == 1
        assert len((await world.http.get("/v2/templates")).json()) == 1
        wrong = {"template_type": "x"}
        assert (await world.http.get("/v2/templates", params=wrong)).status_code == 400

    in_world(scenario)
