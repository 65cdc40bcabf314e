"""The SQL of snapshots."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Select, and_, delete, insert, or_, select, update

from alcove.control.db import Tx
from alcove.control.snapshots.states import SnapshotKind, SnapshotState
from alcove.control.snapshots.tables import snapshots
from alcove.wire.ids import BuildId, NodeId, SandboxId, SnapshotId, TeamId, TemplateId


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One saved state of a sandbox."""

    id: SnapshotId
    team_id: TeamId
    node_id: NodeId
    kind: SnapshotKind
    state: SnapshotState
    sandbox_id: SandboxId
    generation: int
    parent_id: SnapshotId | None
    template_id: TemplateId
    build_id: BuildId
    memory: bool
    vcpu_count: int
    memory_mib: int
    disk_mib: int
    envd_version: str
    size_bytes: int
    created_at: int
    deadline: int
    ready_at: int | None


async def insert_snapshot(tx: Tx, snapshot: Snapshot) -> None:
    values = asdict(snapshot)
    values["kind"], values["state"] = snapshot.kind.value, snapshot.state.value
    await tx.execute(insert(snapshots).values(**values))


async def find(tx: Tx, snapshot_id: SnapshotId) -> Snapshot | None:
    row = (await tx.execute(select(snapshots).where(snapshots.c.id == snapshot_id))).one_or_none()
    return None if row is None else _snapshot(row)


async def hold(tx: Tx, snapshot_id: SnapshotId) -> Snapshot | None:
    """A ready snapshot, which is not given up before this transaction has ended.

    Every transaction that makes something refer to a snapshot calls it.
    """
    found = select(snapshots).where(
        snapshots.c.id == snapshot_id, snapshots.c.state == SnapshotState.READY.value
    )
    row = (await tx.execute(found.with_for_update())).one_or_none()
    return None if row is None else _snapshot(row)


async def mark_ready(tx: Tx, snapshot_id: SnapshotId, *, size_bytes: int, at: int) -> bool:
    """Write down that it was saved; False if it was given up meanwhile."""
    changed = await tx.execute(
        update(snapshots)
        .where(snapshots.c.id == snapshot_id, snapshots.c.state == SnapshotState.CREATING.value)
        .values(state=SnapshotState.READY.value, size_bytes=size_bytes, ready_at=at)
    )
    return changed.rowcount == 1


async def give_up(tx: Tx, snapshot_id: SnapshotId) -> None:
    """Write the intent to remove one that was not taken."""
    await tx.execute(
        update(snapshots)
        .where(snapshots.c.id == snapshot_id, snapshots.c.state == SnapshotState.CREATING.value)
        .values(state=SnapshotState.DELETING.value)
    )


async def give_up_all(tx: Tx, *, at: int) -> None:
    """Those being made shall be done by `at`."""
    await tx.execute(
        update(snapshots)
        .where(snapshots.c.state == SnapshotState.CREATING.value, snapshots.c.deadline > at)
        .values(deadline=at)
    )


async def mark_unused(
    tx: Tx, in_use: Sequence[Select[Any]], *, now: int, limit: int
) -> list[Snapshot]:
    """Write the intent to remove those that are in none of `in_use` and not being made."""
    unused = and_(
        or_(
            snapshots.c.state == SnapshotState.READY.value,
            and_(snapshots.c.state == SnapshotState.CREATING.value, snapshots.c.deadline <= now),
        ),
        *(snapshots.c.id.not_in(ids) for ids in in_use),
    )
    candidates = select(snapshots.c.id).where(unused).order_by(snapshots.c.id).limit(limit)
    ids = list((await tx.execute(candidates.with_for_update())).scalars())
    if not ids:
        return []
    # Looked at once more, now that nobody can begin to refer to them (`hold`).
    changed = await tx.execute(
        update(snapshots)
        .where(snapshots.c.id.in_(ids), unused)
        .values(state=SnapshotState.DELETING.value)
        .returning(*snapshots.c)
    )
    return [_snapshot(row) for row in changed]


async def list_deleting(tx: Tx, node_id: NodeId, *, limit: int) -> list[Snapshot]:
    found = select(snapshots).where(
        snapshots.c.state == SnapshotState.DELETING.value, snapshots.c.node_id == node_id
    )
    return [_snapshot(row) for row in await tx.execute(found.order_by(snapshots.c.id).limit(limit))]


async def known(tx: Tx, snapshot_ids: Sequence[SnapshotId]) -> set[SnapshotId]:
    found: set[SnapshotId] = set()
    for begin in range(0, len(snapshot_ids), 500):
        part = select(snapshots.c.id).where(snapshots.c.id.in_(snapshot_ids[begin : begin + 500]))
        found |= set((await tx.execute(part)).scalars())
    return found


async def forget(tx: Tx, snapshot_id: SnapshotId) -> None:
    """It is gone from its machine."""
    await tx.execute(
        delete(snapshots).where(
            snapshots.c.id == snapshot_id, snapshots.c.state == SnapshotState.DELETING.value
        )
    )


def _snapshot(row: Any) -> Snapshot:
    values = dict(row._mapping)  # noqa: SLF001 - public API of SQLAlchemy despite its name
    values["kind"], values["state"] = SnapshotKind(values["kind"]), SnapshotState(values["state"])
    return Snapshot(**values)
