"""Control follows its nodes and its deadlines, with the loops running as in production."""

import asyncio
from collections.abc import Awaitable, Callable

from control_fixture import InWorld, in_world
from control_world import World
from sqlalchemy import select

from alcove.control.clock import now_us
from alcove.control.events import store as events
from alcove.control.usage.tables import usage_entries
from alcove.wire.ids import SandboxId
from alcove.wire.node import SandboxSpec
from alcove.wire.states import NodeSandboxState, StopReason

__all__ = ["in_world"]


async def until(condition: Callable[[], Awaitable[bool]], within_s: float = 5.0) -> None:
    async with asyncio.timeout(within_s):
        while not await condition():  # noqa: ASYNC110 - the database announces nothing
            await asyncio.sleep(0.01)


async def ready(world: World) -> None:
    """The loops have built the template and listen to the node."""

    async def built() -> bool:
        templates = (await world.http.get("/templates")).json()
        return bool(templates) and templates[0]["buildStatus"] == "ready"

    await until(built)


async def stop_reason(world: World, sandbox_id: str) -> str:
    events = (await world.http.get("/v1/events")).json()
    ends = [
        event["data"]["reason"]
        for event in events
        if event["sandboxID"] == sandbox_id and event["type"] == "sandbox.stopped"
    ]
    return ends[0] if ends else ""


def test_the_loops_make_templates_and_notice_ends(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        await ready(world)
        sandbox_id = await world.create()
        world.node.end(SandboxId(sandbox_id), StopReason.OUT_OF_MEMORY)

        async def noted() -> bool:
            return await stop_reason(world, sandbox_id) == "out_of_memory"

        await until(noted)
        assert (await world.http.get(f"/sandboxes/{sandbox_id}")).status_code == 404

    in_world(scenario, run_loops=True, with_template=False)


def test_expiry_comes_within_a_second_even_when_shortened(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        await ready(world)
        world.clock.at = now_us()
        sandbox_id = await world.create(timeout=3000)
        await world.http.post(f"/sandboxes/{sandbox_id}/timeout", json={"timeout": 0})

        async def gone() -> bool:
            return world.node.running() == []

        await until(gone, within_s=1.0)

    in_world(scenario, run_loops=True, with_template=False)


def test_a_node_that_comes_back_is_reconciled(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        await ready(world)
        lost, kept = await world.create(), await world.create()
        world.node.reachable = False
        world.node.cut_off()
        del world.node.sandboxes[SandboxId(lost)]
        world.node.boot_id += 1
        world.node.reachable = True

        async def noted() -> bool:
            return await stop_reason(world, lost) == "node_lost"

        await until(noted)
        assert world.node.running() == [kept]
        assert (await world.http.get(f"/sandboxes/{kept}")).status_code == 200

    in_world(scenario, run_loops=True, with_template=False)


def test_strangers_on_the_node_are_stopped(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        known = await world.create()
        report = world.node.sandboxes[SandboxId(known)]
        spec = world.node.specs[SandboxId(known)]
        stranger = SandboxSpec(
            **{**spec.to_json(), "sandbox_id": SandboxId("istranger"), "generation": 1}
        )
        await world.node.start(stranger)
        await world.app.state.sandbox_reconciler.step()
        assert world.node.running() == [known]
        ended = world.node.sandboxes[SandboxId("istranger")]
        assert ended.state is NodeSandboxState.STOPPED
        assert report.generation == 1

    in_world(scenario)


def test_reconcile_changes_nothing_when_all_is_well(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        made = [await world.create() for _ in range(3)]
        before = (await world.http.get("/v2/sandboxes")).json()
        for _ in range(2):
            await world.app.state.sandbox_reconciler.step()
        assert sorted(world.node.running()) == sorted(made)
        assert (await world.http.get("/v2/sandboxes")).json() == before
        assert world.node.calls.get("stop", 0) == 0

    in_world(scenario)


def test_old_sandboxes_are_forgotten(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        ended = await world.create(metadata={"a": "b"})
        await world.http.delete(f"/sandboxes/{ended}")
        world.clock.forward(3600)
        kept = await world.create(timeout=86400)
        await world.app.state.sampler.step()
        world.clock.forward(7 * 24 * 3600 - 1800)
        await world.app.state.sandbox_reconciler.purge()
        logs = await world.http.get(f"/sandboxes/{ended}/logs")
        assert logs.json()["logs"] == []
        logs = await world.http.get(f"/sandboxes/{kept}/logs")
        assert logs.json()["logs"] != []
        metrics = await world.http.get(f"/sandboxes/{kept}/metrics")
        assert metrics.json() == []

    in_world(scenario)


def test_old_events_are_forgotten_and_usage_is_not(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        reconciler = world.app.state.sandbox_reconciler
        ended = await world.create()
        await world.http.delete(f"/sandboxes/{ended}")
        world.clock.forward(3 * 86400 - 3600)
        await world.create()
        await reconciler.purge()
        before = (await world.http.get("/v1/events")).json()
        assert [event["type"] for event in before] == [
            "sandbox.started",
            "sandbox.stopped",
            "sandbox.started",
        ]
        world.clock.forward(7200)
        await reconciler.purge()
        assert (await world.http.get("/v1/events")).json() == before[2:]
        async with world.app.state.db.reading() as tx:
            entries = (await tx.execute(select(usage_entries.c.sandbox_id))).scalars().all()
        assert len(entries) == 2

    in_world(scenario, event_days=3)


def test_many_old_events_go_in_parts(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        sandbox_id = await world.create()
        for _ in range(3):
            await world.http.post(f"/sandboxes/{sandbox_id}/timeout", json={"timeout": 400})
        now = world.clock()
        async with world.app.state.db.transaction() as tx:
            assert [await events.purge(tx, before=now, limit=3) for _ in range(3)] == [3, 1, 0]

    in_world(scenario)
