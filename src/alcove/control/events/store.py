"""The SQL of lifecycle events. `record` is called inside the transaction that changes the state."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import delete, insert, select

from alcove.control.db import Tx
from alcove.control.events.tables import events
from alcove.wire.ids import SandboxId, TeamId


class EventKind(StrEnum):
    STARTED = "sandbox.started"
    FAILED = "sandbox.failed"
    STOPPED = "sandbox.stopped"
    TIMEOUT_CHANGED = "sandbox.timeout_changed"
    PAUSED = "sandbox.paused"
    PAUSE_FAILED = "sandbox.pause_failed"
    RESUMED = "sandbox.resumed"
    RESUME_FAILED = "sandbox.resume_failed"
    FORKED = "sandbox.forked"
    SNAPSHOT_CREATED = "sandbox.snapshot_created"
    SNAPSHOT_DELETED = "sandbox.snapshot_deleted"
    ROLLED_BACK = "sandbox.rolled_back"
    ROLLBACK_FAILED = "sandbox.rollback_failed"


@dataclass(frozen=True, slots=True)
class Event:
    id: int
    at: int
    kind: EventKind
    sandbox_id: SandboxId
    data: dict[str, Any]


_INSERT = insert(events)


async def record(
    tx: Tx,
    team_id: TeamId,
    sandbox_id: SandboxId,
    *,
    kind: EventKind,
    at: int,
    data: dict[str, Any],
) -> None:
    await record_all(tx, [(team_id, sandbox_id)], kind=kind, at=at, data=data)


async def record_all(
    tx: Tx,
    subjects: Sequence[tuple[TeamId, SandboxId]],
    *,
    kind: EventKind,
    at: int,
    data: dict[str, Any],
) -> None:
    """The same of several sandboxes, each with its team."""
    common = {"at": at, "kind": kind.value, "data": data}
    rows = [{"team_id": team, "sandbox_id": sandbox} | common for team, sandbox in subjects]
    await tx.execute(_INSERT, rows)


async def page(tx: Tx, team_id: TeamId, *, after: int, limit: int) -> list[Event]:
    """Events of a team, oldest first, with ids above `after`."""
    found = select(
        events.c.id, events.c.at, events.c.kind, events.c.sandbox_id, events.c.data
    ).where(events.c.team_id == team_id, events.c.id > after)
    rows = await tx.execute(found.order_by(events.c.id).limit(limit))
    return [Event(row[0], row[1], EventKind(row[2]), row[3], row[4]) for row in rows]


async def of_sandbox(tx: Tx, team_id: TeamId, sandbox_id: SandboxId) -> list[Event]:
    """The newest thousand events of one sandbox, oldest first."""
    found = select(
        events.c.id, events.c.at, events.c.kind, events.c.sandbox_id, events.c.data
    ).where(events.c.sandbox_id == sandbox_id, events.c.team_id == team_id)
    rows = await tx.execute(found.order_by(events.c.id.desc()).limit(1000))
    return [Event(row[0], row[1], EventKind(row[2]), row[3], row[4]) for row in rows][::-1]


async def purge(tx: Tx, *, before: int, limit: int) -> int:
    """Forget the oldest events, as far as they are old; how many there were, at most `limit`."""
    # In the order of ids, which needs no index on the time: the first young one ends it.
    oldest = select(events.c.id, events.c.at).order_by(events.c.id).limit(limit)
    old = 0
    for event_id, at in (await tx.execute(oldest)).all():
        if at >= before:
            break
        old, last = old + 1, event_id
    if old:
        await tx.execute(delete(events).where(events.c.id <= last))
    return old
