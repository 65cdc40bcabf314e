"""Snapshots nobody needs are removed, and nothing else is, whatever crashed in between."""

import asyncio
from pathlib import Path

import pytest
from control_fixture import InWorld, in_world
from control_world import DATABASES, World, world
from sqlalchemy import select

from alcove.control.clock import MICROSECONDS
from alcove.control.nodes.client import NodeUnreachableError
from alcove.control.sandboxes import store
from alcove.control.snapshots.tables import snapshots
from alcove.control.usage import store as usage
from alcove.control.usage.tables import storage_entries
from alcove.wire.ids import SandboxId, SnapshotId
from alcove.wire.node import SnapshotSpec

__all__ = ["in_world"]

DAY = 24 * 3600


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


async def crash(here: World, at: str, path: str, body: dict) -> None:
    die = DieAt(at)
    await here.restart(checkpoint=die)
    with pytest.raises(Crash):
        await here.http.post(path, json=body)
    assert die.died
    await here.restart()


async def repair(here: World) -> None:
    """What the loops of a restarted control do, once every deadline is over."""
    here.clock.forward(2000)
    for _ in range(2):
        await here.app.state.sandbox_reconciler.step()
        await here.app.state.snapshot_reconciler.step()


async def rows(here: World) -> int:
    async with here.app.state.db.reading() as tx:
        return len((await tx.execute(select(snapshots.c.id))).all())


async def open_storage(here: World) -> int:
    async with here.app.state.db.reading() as tx:
        found = select(storage_entries).where(storage_entries.c.closed_at.is_(None))
        return len((await tx.execute(found)).all())


async def living(here: World) -> tuple[int, int]:
    """Sandboxes alive, and open usage entries."""
    async with here.app.state.db.reading() as tx:
        return sum((await store.count_by_state(tx)).values()), await usage.count_open(tx)


LONG = {"templateID": "base", "timeout": 80_000}


@pytest.mark.parametrize("at", ["snapshot intent written", "snapshot saved"])
@pytest.mark.parametrize("database", DATABASES)
def test_a_snapshot_cut_off_is_undone(tmp_path: Path, database: str, at: str) -> None:
    async def scenario() -> None:
        async with world(tmp_path, database) as here:
            source = await here.create(timeout=80_000)
            await crash(here, at, f"/sandboxes/{source}/snapshots", {"name": "n"})
            await repair(here)
            assert (here.node.saved, await rows(here), await open_storage(here)) == ({}, 0, 0)
            assert here.node.running() == [source]
            answer = await here.http.post(f"/sandboxes/{source}/snapshots", json={"name": "n"})
            assert answer.status_code == 201

    asyncio.run(scenario())


@pytest.mark.parametrize("database", DATABASES)
def test_a_snapshot_cut_off_after_its_result_stands(tmp_path: Path, database: str) -> None:
    async def scenario() -> None:
        async with world(tmp_path, database) as here:
            source = await here.create(timeout=80_000)
            await crash(here, "snapshot published", f"/sandboxes/{source}/snapshots", {})
            await repair(here)
            assert len((await here.http.get("/snapshots")).json()) == 1
            assert (len(here.node.saved), await open_storage(here)) == (1, 1)

    asyncio.run(scenario())


@pytest.mark.parametrize("at", ["fork intent written", "fork saved", "children written"])
@pytest.mark.parametrize("what", ["fork", "clone"])
@pytest.mark.parametrize("database", DATABASES)
def test_a_fork_cut_off_is_undone(tmp_path: Path, database: str, what: str, at: str) -> None:
    async def scenario() -> None:
        async with world(tmp_path, database) as here:
            source = await here.create(timeout=80_000)
            await crash(here, at, f"/sandboxes/{source}/{what}", {"count": 3})
            await repair(here)
            assert here.node.running() == [source]
            assert await living(here) == (1, 1)
            assert (here.node.saved, await rows(here), await open_storage(here)) == ({}, 0, 0)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("at", "state"),
    [
        ("rollback intent written", "paused"),
        ("sandbox rolled back", "running"),
        ("rollback written", "running"),
    ],
)
@pytest.mark.parametrize("before", ["running", "paused"])
@pytest.mark.parametrize("database", DATABASES)
def test_a_rollback_cut_off_loses_nothing(
    tmp_path: Path, database: str, before: str, at: str, state: str
) -> None:
    async def scenario() -> None:
        async with world(tmp_path, database) as here:
            source = await here.create(timeout=80_000)
            taken = await here.http.post(f"/v1/sandboxes/{source}/checkpoints", json={})
            checkpoint = taken.json()["checkpointID"]
            if before == "paused":
                await here.http.post(f"/sandboxes/{source}/pause")
            body = {"checkpoint": checkpoint}
            await crash(here, at, f"/v1/sandboxes/{source}/rollback", body)
            await repair(here)
            shown = (await here.http.get(f"/v1/sandboxes/{source}")).json()
            assert (shown["state"], shown["startedFrom"]) == (state, checkpoint)
            assert here.node.running() == ([source] if state == "running" else [])
            assert (await living(here))[1] == (state == "running")
            assert list(here.node.saved) == [checkpoint]
            if state == "paused":
                answer = await here.http.post(f"/v2/sandboxes/{source}/connect", json={})
                assert answer.status_code == 201

    asyncio.run(scenario())


def test_what_is_referred_to_stays(in_world: InWorld) -> None:
    async def scenario(here: World) -> None:
        source = await here.create()
        taken = (await here.http.post(f"/sandboxes/{source}/snapshots", json={})).json()
        await here.http.post(f"/sandboxes/{source}/pause")
        await here.app.state.snapshot_reconciler.step()
        assert (len(here.node.saved), await open_storage(here)) == (2, 2)
        await here.http.delete(f"/sandboxes/{source}")
        await here.app.state.snapshot_reconciler.step()
        assert (len(here.node.saved), await open_storage(here)) == (1, 1)
        assert await here.create(templateID=taken["snapshotID"])

    in_world(scenario)


def test_a_child_being_started_keeps_its_snapshot(in_world: InWorld) -> None:
    async def scenario(here: World) -> None:
        source = await here.create()

        async def collect(method: str) -> None:
            if method == "start":
                here.node.hold = None
                await here.http.delete(f"/sandboxes/{source}")
                await here.app.state.snapshot_reconciler.step()
                assert len(here.node.saved) == 1

        here.node.hold = collect
        answer = await here.http.post(f"/sandboxes/{source}/fork", json={})
        assert [list(result) for result in answer.json()] == [["sandbox"]]

    in_world(scenario)


def test_a_machine_that_is_away_is_asked_again(in_world: InWorld) -> None:
    async def scenario(here: World) -> None:
        source = await here.create()
        await here.http.post(f"/sandboxes/{source}/fork", json={})
        here.node.fail["delete_snapshot"] = NodeUnreachableError("away")
        await here.app.state.snapshot_reconciler.step()
        assert (await rows(here), await open_storage(here)) == (1, 0)
        del here.node.fail["delete_snapshot"]
        await here.app.state.snapshot_reconciler.step()
        assert (await rows(here), here.node.saved) == (0, {})

    in_world(scenario)


def test_strangers_go_once_they_are_old(in_world: InWorld) -> None:
    async def scenario(here: World) -> None:
        source = SandboxId(await here.create())
        await here.http.post(f"/sandboxes/{source}/snapshots", json={})
        stranger = SnapshotId("0b7c9d4e-1b1a-4b7e-9d39-3f8f0a1c2d3e")
        saved = await here.node.save(SnapshotSpec(stranger, source, 1))
        here.clock.at = round(saved.created_at * MICROSECONDS)
        await here.app.state.snapshot_reconciler.look_for_strangers()
        assert len(here.node.saved) == 2
        here.clock.forward(16 * 60)
        await here.app.state.snapshot_reconciler.look_for_strangers()
        assert stranger not in here.node.saved
        assert len(here.node.saved) == 1

    in_world(scenario)


def test_nothing_goes_by_age_unless_asked(in_world: InWorld) -> None:
    async def scenario(here: World) -> None:
        source = await here.create()
        await here.http.post(f"/sandboxes/{source}/snapshots", json={})
        await here.http.post(f"/sandboxes/{source}/pause")
        here.clock.forward(1000 * DAY)
        await here.app.state.retention.step()
        await here.app.state.snapshot_reconciler.step()
        assert len(here.node.saved) == 2

    in_world(scenario)


def test_what_goes_by_age(in_world: InWorld) -> None:
    async def scenario(here: World) -> None:
        source = await here.create()
        old, used = [
            (await here.http.post(f"/sandboxes/{source}/snapshots", json={})).json()["snapshotID"]
            for _ in range(2)
        ]
        await here.http.post(f"/sandboxes/{source}/snapshots", json={"name": "kept"})
        await here.http.post(f"/sandboxes/{source}/pause")
        here.clock.forward(4 * DAY)
        await here.create(templateID=used)
        await here.app.state.retention.step()
        assert (await here.http.get(f"/sandboxes/{source}")).status_code == 200
        here.clock.forward(2 * DAY)
        made = await here.create(templateID=used)
        await here.app.state.retention.step()
        await here.app.state.snapshot_reconciler.step()
        left = [entry["snapshotID"] for entry in (await here.http.get("/snapshots")).json()]
        assert left == ["default/kept:default", used]
        assert (await here.http.get(f"/sandboxes/{source}")).status_code == 404
        assert (len(here.node.saved), made in here.node.running()) == (2, True)
        told = {
            (event["type"], event["data"].get("reason"))
            for event in (await here.http.get("/v1/events", params={"limit": 100})).json()
        }
        assert ("sandbox.stopped", "retention") in told
        assert ("sandbox.snapshot_deleted", "retention") in told
        assert old not in left

    in_world(scenario, paused_days=5, unnamed_snapshot_days=5)
