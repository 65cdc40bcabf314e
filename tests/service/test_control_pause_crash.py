"""Control dies between any two steps of a pause, a resume or a kill of a paused sandbox.

One reconcile after the restart finishes it: nothing is lost, nothing left over, nothing billed
twice.
"""

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
from control_fixture import InWorld, in_world
from control_world import DATABASES, World, world
from sqlalchemy import select

from alcove.control.sandboxes import store
from alcove.control.usage.tables import storage_entries, usage_entries
from alcove.wire.ids import SandboxId
from alcove.wire.node import SandboxReport
from alcove.wire.states import StopReason

__all__ = ["in_world"]


class Crash(BaseException):
    """The process is gone: nothing that handles errors may run."""


class DieAt:
    def __init__(self, name: str) -> None:
        self.name = name
        self.died = asyncio.Event()

    async def __call__(self, name: str) -> None:
        if name == self.name:
            self.died.set()
            raise Crash


async def crash(here: World, at: str, method: str, path: str, body: object = None) -> None:
    die = DieAt(at)
    await here.restart(checkpoint=die)
    with pytest.raises(Crash):
        await here.http.request(method, path, json=body)
    assert die.died.is_set()
    await here.restart()


async def row(here: World, sandbox_id: str) -> store.Sandbox:
    async with here.app.state.db.reading() as tx:
        found = await store.find(tx, SandboxId(sandbox_id))
    assert found is not None
    return found


async def repair(here: World) -> None:
    await here.app.state.sandbox_reconciler.step()
    await here.app.state.snapshot_reconciler.step()


async def ledger(here: World) -> tuple[list[tuple[int, bool]], list[bool]]:
    """Lives (generation, open?) and snapshots (open?) that are billed."""
    async with here.app.state.db.reading() as tx:
        lives = await tx.execute(
            select(usage_entries.c.generation, usage_entries.c.closed_at).order_by(
                usage_entries.c.generation
            )
        )
        stored = await tx.execute(
            select(storage_entries.c.closed_at).order_by(storage_entries.c.opened_at)
        )
        return [(life[0], life[1] is None) for life in lives], [kept[0] is None for kept in stored]


async def kinds(here: World) -> list[str]:
    return [event["type"] for event in (await here.http.get("/v1/events")).json()]


async def still_works(here: World, sandbox_id: str, generation: int) -> None:
    """It can be resumed, paused and killed, and leaves nothing."""
    answer = await here.http.post(f"/v2/sandboxes/{sandbox_id}/connect", json={})
    assert answer.status_code in {200, 201}
    assert (await row(here, sandbox_id)).generation == generation
    assert here.node.running() == [sandbox_id]
    assert (await here.http.post(f"/sandboxes/{sandbox_id}/pause")).status_code == 204
    assert (await here.http.delete(f"/sandboxes/{sandbox_id}")).status_code == 204
    await repair(here)
    assert here.node.running() == []
    assert here.node.saved == {}
    lives, stored = await ledger(here)
    assert not any(is_open for _, is_open in lives)
    assert not any(stored)


@pytest.mark.parametrize("strict", [False, True])
def test_a_pause_cut_off_is_finished_as_it_was_asked_for(in_world: InWorld, strict: bool) -> None:
    async def scenario(here: World) -> None:
        sandbox_id = await here.create()
        here.node.silent.add(SandboxId(sandbox_id))
        path = f"/sandboxes/{sandbox_id}/pause"
        await crash(here, "pause intent written", "POST", path, {"requireHealthyGuest": strict})
        await repair(here)
        sandbox = await row(here, sandbox_id)
        assert sandbox.state.value == ("running" if strict else "paused")
        assert sandbox.unresponsive is not strict
        assert len(here.node.saved) == (0 if strict else 1)
        if strict:
            assert (await kinds(here))[-1] == "sandbox.pause_failed"
            # The next one is asked for without it.
            assert (await here.http.post(path)).status_code == 204
        assert (await row(here, sandbox_id)).unresponsive

    in_world(scenario)


@pytest.mark.parametrize("at", ["pause intent written", "sandbox saved", "pause written"])
@pytest.mark.parametrize("database", DATABASES)
def test_a_pause_cut_off_is_finished(tmp_path: Path, database: str, at: str) -> None:
    async def scenario() -> None:
        async with world(tmp_path, database) as here:
            sandbox_id = await here.create()
            await crash(here, at, "POST", f"/sandboxes/{sandbox_id}/pause")
            shown = (await here.http.get(f"/sandboxes/{sandbox_id}")).json()
            assert shown["state"] == "paused"
            await repair(here)
            await repair(here)
            sandbox = await row(here, sandbox_id)
            assert sandbox.state.value == "paused"
            assert here.node.running() == []
            assert list(here.node.saved) == [sandbox.snapshot_id]
            assert await ledger(here) == ([(1, False)], [True])
            assert await kinds(here) == ["sandbox.started", "sandbox.paused"]
            await still_works(here, sandbox_id, 2)

    asyncio.run(scenario())


@pytest.mark.parametrize("at", ["pause intent written", "sandbox saved", "pause written"])
@pytest.mark.parametrize("database", DATABASES)
def test_a_pause_at_its_end_cut_off_is_finished(tmp_path: Path, database: str, at: str) -> None:
    async def scenario() -> None:
        async with world(tmp_path, database) as here:
            sandbox_id = await here.create(autoPause=True, timeout=5)
            here.clock.forward(6)
            die = DieAt(at)
            await here.restart(checkpoint=die)
            with contextlib.suppress(Crash):
                await here.app.state.sandbox_reconciler.expire()
            await die.died.wait()
            await here.restart()
            await repair(here)
            await here.app.state.sandbox_reconciler.expire()
            assert (await row(here, sandbox_id)).state.value == "paused"
            assert here.node.running() == []
            assert await ledger(here) == ([(1, False)], [True])
            assert await kinds(here) == ["sandbox.started", "sandbox.paused"]
            await still_works(here, sandbox_id, 2)

    asyncio.run(scenario())


@pytest.mark.parametrize("at", ["resume intent written", "sandbox resumed", "resume written"])
@pytest.mark.parametrize("database", DATABASES)
def test_a_resume_cut_off_is_finished_or_undone(tmp_path: Path, database: str, at: str) -> None:
    async def scenario() -> None:
        async with world(tmp_path, database) as here:
            sandbox_id = await here.create()
            assert (await here.http.post(f"/sandboxes/{sandbox_id}/pause")).status_code == 204
            await crash(here, at, "POST", f"/v2/sandboxes/{sandbox_id}/connect", {})
            here.clock.forward(200)
            await repair(here)
            await repair(here)
            sandbox = await row(here, sandbox_id)
            if at == "resume intent written":
                assert sandbox.state.value == "paused"
                assert here.node.running() == []
                assert len(here.node.saved) == 1
                assert await ledger(here) == ([(1, False)], [True])
                await still_works(here, sandbox_id, 3)
            else:
                assert sandbox.state.value == "running"
                assert here.node.running() == [sandbox_id]
                assert here.node.saved == {}
                assert await ledger(here) == ([(1, False), (2, True)], [False])
                await still_works(here, sandbox_id, 2)

    asyncio.run(scenario())


@pytest.mark.parametrize("at", ["resume intent written", "sandbox resumed"])
def test_who_waits_for_a_resume_that_was_cut_off_does_not_hold_it_up(
    in_world: InWorld, at: str
) -> None:
    async def scenario(here: World) -> None:
        sandbox_id = await here.create()
        assert (await here.http.post(f"/sandboxes/{sandbox_id}/pause")).status_code == 204
        path = f"/v2/sandboxes/{sandbox_id}/connect"
        await crash(here, at, "POST", path, {})
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(here.http.post(path, json={}))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            # With PostgreSQL another replica might be at it until then.
            here.clock.forward(200)
            await repair(here)
        assert waiting.result().status_code in {200, 201}
        assert (await row(here, sandbox_id)).state.value == "running"
        assert here.node.running() == [sandbox_id]
        lives, _ = await ledger(here)
        assert [is_open for _, is_open in lives] == [False, True]

    in_world(scenario)


@pytest.mark.parametrize("at", ["stop intent written", "node stopped"])
@pytest.mark.parametrize("database", DATABASES)
def test_a_kill_of_a_paused_one_cut_off_is_finished(tmp_path: Path, database: str, at: str) -> None:
    async def scenario() -> None:
        async with world(tmp_path, database) as here:
            sandbox_id = await here.create()
            assert (await here.http.post(f"/sandboxes/{sandbox_id}/pause")).status_code == 204
            await crash(here, at, "DELETE", f"/sandboxes/{sandbox_id}")
            assert (await here.http.get(f"/sandboxes/{sandbox_id}")).status_code == 404
            await repair(here)
            assert (await row(here, sandbox_id)).state.value == "stopped"
            assert here.node.saved == {}
            assert await ledger(here) == ([(1, False)], [False])

    asyncio.run(scenario())


def test_a_pause_that_the_machine_did_and_the_database_forgot(in_world: InWorld) -> None:
    async def scenario(here: World) -> None:
        sandbox_id = await here.create()
        await crash(here, "pause intent written", "POST", f"/sandboxes/{sandbox_id}/pause")
        pausing = await row(here, sandbox_id)
        await repair(here)
        # As a power cut leaves it: the last commits are gone, what the machine did is not.
        other = await here.create()
        spec = here.node.specs[SandboxId(other)]
        saved = next(iter(here.node.saved.values()))
        assert pausing.saving_id == saved.snapshot_id
        lost = replace(saved, snapshot_id="11111111-1111-4111-8111-111111111111")
        lost = replace(lost, sandbox_id=spec.sandbox_id, generation=1)
        here.node.saved[lost.snapshot_id] = lost
        here.node.end(SandboxId(other), StopReason.PAUSED)
        await here.app.state.sandbox_reconciler.observe(SandboxId(other))
        assert (await row(here, other)).state.value == "paused"
        answer = await here.http.post(f"/v2/sandboxes/{other}/connect", json={})
        assert answer.status_code == 201

    in_world(scenario)


def test_a_sandbox_resumed_while_the_machines_are_looked_at_is_left_alone(
    in_world: InWorld,
) -> None:
    async def scenario(here: World) -> None:
        sandbox_id = await here.create()
        old = here.node.sandboxes[SandboxId(sandbox_id)]
        assert (await here.http.post(f"/sandboxes/{sandbox_id}/pause")).status_code == 204
        list_all = here.node.list_all

        async def of_before() -> list[SandboxReport]:
            here.node.list_all = list_all
            await here.http.post(f"/v2/sandboxes/{sandbox_id}/connect", json={})
            return [old]

        here.node.list_all = of_before
        await here.app.state.sandbox_reconciler.step()
        await here.app.state.sandbox_reconciler.step()
        assert here.node.running() == [sandbox_id]
        assert (await row(here, sandbox_id)).state.value == "running"

    in_world(scenario)
