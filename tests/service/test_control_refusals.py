"""Bad input of pause, resume, fork and snapshot: the exact status, code and words, nothing lost."""

import asyncio
from typing import Any

import httpx
import pytest
from control_fixture import InWorld, in_world
from control_world import World

from alcove.control.nodes.client import NodeSnapshotError
from alcove.wire.errors import ErrorCode

__all__ = ["in_world"]

AT_LEAST_1 = "validation error: body.count: Input should be greater than or equal to 1"
AT_MOST_100 = "validation error: body.count: Input should be less than or equal to 100"
A_NUMBER = "validation error: body.count: Input should be a valid integer"
OTHER_VERSION = (
    "The snapshot was made with another version of the node's driver, or on another kind of "
    "processor, and cannot be started; put that back, or make the sandbox anew from its template"
)
DAMAGED = (
    "The snapshot is damaged or no longer on its node and cannot be started; use an earlier one, "
    "or make the sandbox anew from its template"
)


def told(answer: httpx.Response) -> tuple[int, str, str]:
    body = answer.json()
    assert body["code"] == answer.status_code
    return answer.status_code, body["error_code"], body["message"]


def nobody(sandbox_id: str) -> tuple[int, str, str]:
    text = f"Sandbox \"{sandbox_id}\" doesn't exist or you don't have access to it"
    return 404, "not_found", text


def conflict(sandbox_id: str, text: str) -> tuple[int, str, str]:
    return 409, "conflict", f'Sandbox "{sandbox_id}" {text}'


async def post(here: World, sandbox_id: str, what: str, **body: Any) -> httpx.Response:
    version = "/v1" if what == "rollback" else "/v2" if what == "connect" else ""
    return await here.http.post(f"{version}/sandboxes/{sandbox_id}/{what}", json=body)


async def during(here: World, method: str, sandbox_id: str, what: str, **body: Any) -> Any:
    """Ask while the machine is about to do `method`: the task of that, and a way to let it go."""
    begun, release = asyncio.Event(), asyncio.Event()

    async def hold(called: str) -> None:
        if called == method:
            begun.set()
            await release.wait()

    here.node.hold = hold
    task = asyncio.create_task(post(here, sandbox_id, what, **body))
    await begun.wait()

    async def let_go() -> httpx.Response:
        here.node.hold = None
        release.set()
        return await task

    return let_go


@pytest.mark.parametrize("what", ["fork", "clone"])
@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, AT_LEAST_1),
        (-1, AT_LEAST_1),
        (101, AT_MOST_100),
        (10**30, AT_MOST_100),
        ("1", A_NUMBER),
        (1.5, A_NUMBER),
        (True, A_NUMBER),
        (None, A_NUMBER),
    ],
)
def test_counts_that_are_none(in_world: InWorld, what: str, count: Any, text: str) -> None:
    async def scenario(here: World) -> None:
        source = await here.create()
        answer = await post(here, source, what, count=count)
        assert told(answer) == (400, "invalid_request", text)
        assert here.node.running() == [source]
        assert "save" not in here.node.calls

    in_world(scenario)


def test_of_one_that_was_killed_nothing_is_made(in_world: InWorld) -> None:
    async def scenario(here: World) -> None:
        killed = await here.create()
        assert (await here.http.delete(f"/sandboxes/{killed}")).status_code == 204
        for what in ("fork", "clone", "pause", "resume", "connect", "snapshots", "reset"):
            assert told(await post(here, killed, what)) == nobody(killed), what
        assert told(await post(here, killed, "rollback", checkpoint="any")) == nobody(killed)
        assert told(await here.http.delete(f"/sandboxes/{killed}")) == nobody(killed)
        assert here.node.running() == []
        assert "save" not in here.node.calls

    in_world(scenario)


def test_what_is_asked_of_one_that_is_being_paused(in_world: InWorld) -> None:
    async def scenario(here: World) -> None:
        source = await here.create()
        let_go = await during(here, "save", source, "pause")
        passing = conflict(source, "is being paused; try again in a moment")
        for what in ("fork", "clone", "snapshots", "reset"):
            answer = await post(here, source, what)
            assert told(answer) == passing, what
            assert answer.headers["Should-Retry"] == "true"
        answer = await post(here, source, "rollback", checkpoint="any")
        assert told(answer) == passing
        second = await post(here, source, "pause")
        assert told(second) == conflict(source, "is already paused or being paused")
        assert (await let_go()).status_code == 204
        third = await post(here, source, "pause")
        assert told(third) == conflict(source, "is already paused or being paused")
        assert here.node.calls["save"] == 1
        assert (await post(here, source, "connect")).status_code == 201

    in_world(scenario)


@pytest.mark.parametrize("what", ["resume", "connect"])
def test_who_resumes_during_a_pause_waits_and_is_served(in_world: InWorld, what: str) -> None:
    async def scenario(here: World) -> None:
        source = await here.create()
        let_go = await during(here, "save", source, "pause")
        resuming = asyncio.create_task(post(here, source, what))
        await asyncio.sleep(0.05)
        assert not resuming.done()
        assert (await let_go()).status_code == 204
        assert (await resuming).status_code == 201
        assert here.node.running() == [source]
        assert told(await post(here, source, "resume")) == conflict(source, "is already running")

    in_world(scenario)


def test_what_is_asked_of_one_that_is_being_resumed(in_world: InWorld) -> None:
    async def scenario(here: World) -> None:
        source = await here.create()
        assert (await post(here, source, "pause")).status_code == 204
        let_go = await during(here, "start", source, "connect")
        for what in ("fork", "clone", "snapshots", "reset"):
            passing = conflict(source, "is being resumed; try again in a moment")
            assert told(await post(here, source, what)) == passing, what
        answer = await post(here, source, "pause")
        assert told(answer) == conflict(source, "is being resumed; pause it in a moment")
        assert (await let_go()).status_code == 201
        assert (await post(here, source, "fork")).status_code == 201

    in_world(scenario)


@pytest.mark.parametrize("strict", [False, True])
def test_a_kill_during_the_save_of_a_fork(in_world: InWorld, strict: bool) -> None:
    async def scenario(here: World) -> None:
        source = await here.create()
        let_go = await during(here, "save", source, "clone", count=2, strict=strict)
        assert (await here.http.delete(f"/sandboxes/{source}")).status_code == 204
        answer = await let_go()
        assert answer.status_code == 404
        assert told(answer) == nobody(source)
        await here.app.state.snapshot_reconciler.step()
        assert (here.node.running(), here.node.saved) == ([], {})

    in_world(scenario)


def test_names_that_clash(in_world: InWorld) -> None:
    async def scenario(here: World) -> None:
        source = await here.create()
        answer = await post(here, source, "snapshots", name="base")
        text = "'base' is the name of a template; choose another name for the snapshot"
        assert told(answer) == (409, "conflict", text)
        assert here.node.saved == {}
        async with asyncio.TaskGroup() as group:
            at_once = [
                group.create_task(post(here, source, "snapshots", name="mine")) for _ in range(3)
            ]
        assert [task.result().status_code for task in at_once] == [201, 201, 201]
        ids = {task.result().json()["snapshotID"] for task in at_once}
        shown = (await here.http.get("/snapshots", params={"name": "mine"})).json()
        assert len(shown) == len(here.node.saved) == 3
        assert [one["names"] for one in shown] == [["default/mine:default"], [], []]
        assert ids
        assert await here.create(templateID="mine")
        assert here.node.running()[0] == source

    in_world(scenario)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (ErrorCode.SNAPSHOT_INCOMPATIBLE, (409, "snapshot_incompatible", OTHER_VERSION)),
        (ErrorCode.SNAPSHOT_DAMAGED, (500, "snapshot_damaged", DAMAGED)),
        (ErrorCode.NOT_FOUND, (500, "snapshot_damaged", DAMAGED)),
    ],
)
def test_snapshots_that_cannot_be_started(
    in_world: InWorld, code: ErrorCode, expected: tuple[int, str, str]
) -> None:
    async def scenario(here: World) -> None:
        source = await here.create()
        taken = (await post(here, source, "snapshots")).json()["snapshotID"]
        here.node.fail["start"] = NodeSnapshotError("x", code)
        made = await here.http.post("/v2/sandboxes", json={"templateID": taken})
        assert told(made) == expected
        back = await post(here, source, "rollback", checkpoint=taken)
        status, error_code, text = expected
        text = f"The sandbox was not rolled back and runs on as before. {text}"
        assert told(back) == (status, error_code, text)
        [child] = (await post(here, source, "fork")).json()
        assert (child["error"]["code"], child["error"]["error_code"]) == expected[:2]
        assert (await post(here, source, "pause")).status_code == 204
        assert told(await post(here, source, "connect")) == expected
        assert (await here.http.get(f"/sandboxes/{source}")).json()["state"] == "paused"
        here.node.fail.clear()
        assert (await post(here, source, "connect")).status_code == 201
        assert await here.create(templateID=taken)

    in_world(scenario)
