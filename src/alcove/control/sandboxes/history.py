"""Metrics of sandboxes over time: sampled from the machines, kept for a day and up to a number."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import delete, func, insert, select

from alcove.control.clock import MICROSECONDS, now_us
from alcove.control.db import Database, Tx
from alcove.control.nodes.client import NodeError
from alcove.control.nodes.service import Nodes
from alcove.control.sandboxes import store
from alcove.control.sandboxes.tables import sandbox_metrics
from alcove.wire.ids import SandboxId
from alcove.wire.node import SandboxUsage

RETENTION_US = 24 * 3600 * MICROSECONDS
MAX_POINTS = 2_000_000
"""About 200 MB. Beyond it the oldest points go first, whosever they are."""


@dataclass(frozen=True, slots=True)
class Point:
    sandbox_id: SandboxId
    at: int
    cpu_count: int
    cpu_used_pct: float
    mem_used: int
    mem_total: int
    mem_cache: int
    disk_used: int
    disk_total: int


class Sampler:
    """Writes one point per running sandbox and step."""

    def __init__(self, db: Database, nodes: Nodes, clock: Callable[[], int] = now_us) -> None:
        self._db = db
        self._nodes = nodes
        self._clock = clock

    async def step(self) -> None:
        for node in self._nodes.all():
            try:
                usage = await node.client.usage()
            except NodeError:
                continue
            async with self._db.reading() as tx:
                running = await store.running_ids(tx, node.node_id)
            # Our own clock: one moment per step, so a machine's repeated sample cannot collide.
            now = self._clock()
            points = [_row(key, now, sample) for key, sample in usage.items() if key in running]
            if points:
                async with self._db.transaction() as tx:
                    await tx.execute(insert(sandbox_metrics), points)


async def read(tx: Tx, sandbox_id: SandboxId, *, start: int | None, end: int | None) -> list[Point]:
    """Points of one sandbox, oldest first; the bounds are inclusive."""
    found = select(sandbox_metrics).where(sandbox_metrics.c.sandbox_id == sandbox_id)
    if start is not None:
        found = found.where(sandbox_metrics.c.at >= start)
    if end is not None:
        found = found.where(sandbox_metrics.c.at <= end)
    rows = await tx.execute(found.order_by(sandbox_metrics.c.at))
    return [Point(*row) for row in rows]


async def newest(tx: Tx, sandbox_ids: Sequence[SandboxId]) -> list[Point]:
    """The last point of each sandbox that has one."""
    last = (
        select(sandbox_metrics.c.sandbox_id, func.max(sandbox_metrics.c.at).label("at"))
        .where(sandbox_metrics.c.sandbox_id.in_(sandbox_ids))
        .group_by(sandbox_metrics.c.sandbox_id)
        .subquery()
    )
    found = select(sandbox_metrics).join(
        last,
        (sandbox_metrics.c.sandbox_id == last.c.sandbox_id) & (sandbox_metrics.c.at == last.c.at),
    )
    return [Point(*row) for row in await tx.execute(found)]


async def purge(tx: Tx, *, now: int, keep: int = MAX_POINTS) -> None:
    await tx.execute(delete(sandbox_metrics).where(sandbox_metrics.c.at < now - RETENTION_US))
    cut = select(sandbox_metrics.c.at).order_by(sandbox_metrics.c.at.desc()).offset(keep).limit(1)
    newest_too_many = (await tx.execute(cut)).scalar_one_or_none()
    if newest_too_many is not None:
        await tx.execute(delete(sandbox_metrics).where(sandbox_metrics.c.at <= newest_too_many))


def _row(sandbox_id: SandboxId, at: int, sample: SandboxUsage) -> dict[str, object]:
    return {
        "sandbox_id": sandbox_id,
        "at": at,
        "cpu_count": sample.cpu_count,
        "cpu_used_pct": sample.cpu_used_pct,
        "mem_used": sample.mem_used,
        "mem_total": sample.mem_total,
        "mem_cache": sample.mem_cache,
        "disk_used": sample.disk_used,
        "disk_total": sample.disk_total,
    }
