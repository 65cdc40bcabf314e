"""The ledger on a clock of its own: who pauses pays for compute while it runs, and for no more."""

from control_fixture import InWorld, in_world
from control_world import World
from sqlalchemy import select

from alcove.control.clock import MICROSECONDS
from alcove.control.usage.tables import storage_entries, usage_entries
from alcove.wire.ids import SandboxId

__all__ = ["in_world"]

HOUR_S = 3600
SLACK_US = 1000
"""The clock of these tests moves by a microsecond at every look."""


async def spans(here: World) -> tuple[list[int], list[int]]:
    """How long each life ran and each paused state was stored, in microseconds, none open."""
    async with here.app.state.db.reading() as tx:
        lives = (await tx.execute(select(usage_entries).order_by(usage_entries.c.id))).all()
        kept = (await tx.execute(select(storage_entries))).all()
    assert all(entry.closed_at is not None for entry in (*lives, *kept))
    kept.sort(key=lambda entry: entry.opened_at)
    return (
        [entry.closed_at - entry.opened_at for entry in lives],
        [entry.closed_at - entry.opened_at for entry in kept],
    )


def about(hours: float) -> range:
    exact = round(hours * HOUR_S * MICROSECONDS)
    return range(exact - SLACK_US, exact + SLACK_US)


def test_a_day_of_which_two_hours_were_worked(in_world: InWorld) -> None:
    async def scenario(here: World) -> None:
        sandbox_id = await here.create(timeout=20 * HOUR_S)
        for worked, rested in ((0.5, 8), (1, 10), (0.5, 4)):
            here.clock.forward(worked * HOUR_S)
            assert (await here.http.post(f"/sandboxes/{sandbox_id}/pause")).status_code == 204
            assert here.node.running() == []
            here.clock.forward(rested * HOUR_S)
            path = f"/v2/sandboxes/{sandbox_id}/connect"
            assert (await here.http.post(path, json={"timeout": 20 * HOUR_S})).status_code == 201
            await here.app.state.snapshot_reconciler.step()
        assert (await here.http.delete(f"/sandboxes/{sandbox_id}")).status_code == 204
        lives, kept = await spans(here)
        assert sum(lives) in about(2)
        assert len(lives) == 4
        assert [sum(kept) in about(22), len(kept)] == [True, 3]

    in_world(scenario)


def test_a_pause_at_the_end_of_its_time_ends_the_bill_too(in_world: InWorld) -> None:
    async def scenario(here: World) -> None:
        sandbox_id = await here.create(timeout=HOUR_S, autoPause=True)
        here.clock.forward(HOUR_S)
        await here.app.state.sandbox_reconciler.expire()
        news = here.app.state.sandboxes.outcomes.news
        with news.following(SandboxId(sandbox_id)) as changed:
            while (await here.http.get(f"/v1/sandboxes/{sandbox_id}")).json()["pause"] is None:
                await changed.wait()
                changed.clear()
        here.clock.forward(5 * HOUR_S)
        assert (await here.http.delete(f"/sandboxes/{sandbox_id}")).status_code == 204
        await here.app.state.snapshot_reconciler.step()
        lives, kept = await spans(here)
        assert len(lives) == len(kept) == 1
        assert lives[0] in about(1)
        assert kept[0] in about(5)

    in_world(scenario)


def test_children_are_billed_from_their_own_start(in_world: InWorld) -> None:
    async def scenario(here: World) -> None:
        source = await here.create(timeout=10 * HOUR_S)
        here.clock.forward(3 * HOUR_S)
        body = {"count": 2, "timeout": 10 * HOUR_S}
        forked = (await here.http.post(f"/sandboxes/{source}/fork", json=body)).json()
        here.clock.forward(HOUR_S)
        for sandbox_id in (source, *(entry["sandbox"]["sandboxID"] for entry in forked)):
            assert (await here.http.delete(f"/sandboxes/{sandbox_id}")).status_code == 204
        await here.app.state.snapshot_reconciler.step()
        lives, _ = await spans(here)
        assert [life in about(hours) for life, hours in zip(lives, (4, 1, 1), strict=True)] == [
            True
        ] * 3

    in_world(scenario)
