"""Control dies between any two steps: one reconcile after the restart leaves nothing half-made."""

import asyncio
from pathlib import Path

import pytest
from control_fixture import InWorld, in_world
from control_world import DATABASES, World, world

from alcove.control.sandboxes import store
from alcove.control.usage import store as usage

__all__ = ["in_world"]

BODY = {"templateID": "base"}


class Crash(BaseException):
    """The process is gone: nothing that handles errors may run."""


class DieAt:
    def __init__(self, name: str) -> None:
        self.name = name
        self.died = False

    async def __call__(self, name: str) -> None:
        if name == self.name:
            self.died = True
            raise Crash


async def left(here: World) -> tuple[dict[str, int], int]:
    """Living sandboxes by state, and open usage entries."""
    async with here.app.state.db.reading() as tx:
        counts = await store.count_by_state(tx)
        return {state.value: n for state, n in counts.items() if n}, await usage.count_open(tx)


async def crash(here: World, at: str, method: str, path: str, **request: object) -> None:
    die = DieAt(at)
    await here.restart(checkpoint=die)
    with pytest.raises(Crash):
        await here.http.request(method, path, **request)
    assert die.died
    await here.restart()


@pytest.mark.parametrize("at", ["intent written", "node started"])
@pytest.mark.parametrize("database", DATABASES)
def test_a_create_cut_off_is_undone(tmp_path: Path, database: str, at: str) -> None:
    async def scenario() -> None:
        async with world(tmp_path, database) as here:
            await crash(here, at, "POST", "/v2/sandboxes", json=BODY)
            here.clock.forward(200)
            await here.app.state.sandbox_reconciler.step()
            assert here.node.running() == []
            assert await left(here) == ({}, 0)
            [event] = (await here.http.get("/v1/events")).json()
            assert event["type"] == "sandbox.failed"
            assert (await here.http.post("/v2/sandboxes", json=BODY)).status_code == 201

    asyncio.run(scenario())


@pytest.mark.parametrize("database", DATABASES)
def test_a_create_cut_off_after_its_result_stands(tmp_path: Path, database: str) -> None:
    async def scenario() -> None:
        async with world(tmp_path, database) as here:
            await crash(here, "result written", "POST", "/v2/sandboxes", json=BODY)
            await here.app.state.sandbox_reconciler.step()
            assert await left(here) == ({"running": 1}, 1)
            [shown] = (await here.http.get("/v2/sandboxes")).json()
            assert here.node.running() == [shown["sandboxID"]]

    asyncio.run(scenario())


@pytest.mark.parametrize("at", ["intent written", "node started", "result written"])
@pytest.mark.parametrize("database", DATABASES)
def test_with_an_idempotency_key_the_repeat_gets_one_sandbox(
    tmp_path: Path, database: str, at: str
) -> None:
    async def scenario() -> None:
        key = {"Idempotency-Key": "k"}
        async with world(tmp_path, database) as here:
            await crash(here, at, "POST", "/v2/sandboxes", json=BODY, headers=key)
            here.clock.forward(200)
            await here.app.state.sandbox_reconciler.step()
            again = await here.http.post("/v2/sandboxes", json=BODY, headers=key)
            assert again.status_code == 201
            assert here.node.running() == [again.json()["sandboxID"]]
            assert await left(here) == ({"running": 1}, 1)
            assert here.node.calls["start"] == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("at", ["stop intent written", "node stopped"])
@pytest.mark.parametrize("database", DATABASES)
def test_a_kill_cut_off_is_finished(tmp_path: Path, database: str, at: str) -> None:
    async def scenario() -> None:
        async with world(tmp_path, database) as here:
            sandbox_id = await here.create()
            await crash(here, at, "DELETE", f"/sandboxes/{sandbox_id}")
            assert (await here.http.get(f"/sandboxes/{sandbox_id}")).status_code == 404
            await here.app.state.sandbox_reconciler.step()
            assert here.node.running() == []
            assert await left(here) == ({}, 0)
            await here.app.state.sandbox_reconciler.step()
            events = (await here.http.get("/v1/events")).json()
            assert [event["type"] for event in events] == ["sandbox.started", "sandbox.stopped"]
            assert events[1]["data"] == {"reason": "killed"}

    asyncio.run(scenario())


@pytest.mark.parametrize("at", ["stop intent written", "node stopped"])
@pytest.mark.parametrize("database", DATABASES)
def test_an_expiry_cut_off_is_finished(tmp_path: Path, database: str, at: str) -> None:
    async def scenario() -> None:
        async with world(tmp_path, database) as here:
            ended = {await here.create(timeout=10, metadata={"a": "b"}) for _ in range(20)}
            kept = await here.create()
            here.clock.forward(11)
            await here.restart(checkpoint=DieAt(at))
            with pytest.raises(Crash):
                await here.app.state.sandbox_reconciler.expire()
            await here.restart()
            await here.app.state.sandbox_reconciler.step()
            await here.app.state.sandbox_reconciler.expire()
            assert here.node.running() == [kept]
            assert await left(here) == ({"running": 1}, 1)
            events = (await here.http.get("/v1/events")).json()
            stops = [event for event in events if event["type"] == "sandbox.stopped"]
            assert {event["sandboxID"] for event in stops} == ended
            assert len(stops) == len(ended)
            assert all(event["data"] == {"reason": "timeout"} for event in stops)

    asyncio.run(scenario())


def test_a_start_given_up_meanwhile_is_not_revived(in_world: InWorld) -> None:
    async def scenario(here: World) -> None:
        started, release = asyncio.Event(), asyncio.Event()

        async def hold(method: str) -> None:
            if method == "start":
                started.set()
                await release.wait()

        here.node.hold = hold
        async with asyncio.TaskGroup() as group:
            create = group.create_task(here.http.post("/v2/sandboxes", json=BODY))
            await started.wait()
            here.clock.forward(200)
            await here.app.state.sandbox_reconciler.step()
            release.set()
        assert create.result().status_code == 500
        assert here.node.running() == []
        assert await left(here) == ({}, 0)

    in_world(scenario)


def test_a_start_in_progress_is_left_alone_by_reconcile(in_world: InWorld) -> None:
    async def scenario(here: World) -> None:
        async def reconcile_amid(method: str) -> None:
            if method == "start":
                here.node.hold = None
                await here.app.state.sandbox_reconciler.step()

        here.node.hold = reconcile_amid
        assert await here.create() in here.node.running()
        await here.app.state.sandbox_reconciler.step()
        assert await left(here) == ({"running": 1}, 1)

    in_world(scenario)


def test_a_caller_that_goes_away_does_not_stop_the_work(in_world: InWorld) -> None:
    async def scenario(here: World) -> None:
        started, release = asyncio.Event(), asyncio.Event()

        async def hold(method: str) -> None:
            if method == "start":
                started.set()
                await release.wait()

        here.node.hold = hold
        caller = asyncio.create_task(here.http.post("/v2/sandboxes", json=BODY))
        await started.wait()
        caller.cancel()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await caller
        deadlines = here.app.state.sandboxes.outcomes.deadlines_changed
        await deadlines.wait()
        assert await left(here) == ({"running": 1}, 1)

    in_world(scenario)


def test_the_local_key_survives_a_crash_before_its_commit(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "local.env").write_text("E2B_API_KEY=e2b_" + "a" * 40 + "\n")
        async with world(tmp_path) as here:
            assert here.key == "e2b_" + "a" * 40
            assert (await here.http.get("/teams")).status_code == 200

    asyncio.run(scenario())
