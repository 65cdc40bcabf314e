"""What happened to a team's sandboxes, in the words of PPIO's list of events (ppio 2.1)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select

from alcove.control.db import Tx
from alcove.control.events.store import EventKind
from alcove.control.events.tables import events
from alcove.control.sandboxes.tables import sandboxes
from alcove.wire.ids import SandboxId, TeamId, TemplateId

NAMES: dict[EventKind, tuple[str, bool]] = {
    EventKind.STARTED: ("create", True),
    EventKind.FAILED: ("create", False),
    EventKind.STOPPED: ("delete", True),
    EventKind.TIMEOUT_CHANGED: ("timeout", True),
    EventKind.PAUSED: ("pause", True),
    EventKind.PAUSE_FAILED: ("pause", False),
    EventKind.RESUMED: ("resume", True),
    EventKind.RESUME_FAILED: ("resume", False),
    EventKind.FORKED: ("clone", True),
    EventKind.SNAPSHOT_CREATED: ("snapshot", True),
    EventKind.SNAPSHOT_DELETED: ("snapshot_delete", True),
    EventKind.ROLLED_BACK: ("rollback", True),
    EventKind.ROLLBACK_FAILED: ("rollback", False),
}
"""What PPIO calls each kind, and whether it says that something succeeded."""


@dataclass(frozen=True, slots=True)
class Wanted:
    team_id: TeamId
    begin: int
    end: int
    sandbox_id: SandboxId | None = None
    template: str = ""
    """A part of the template's id."""
    names: Sequence[str] = ()
    """connect stands for a resume."""
    succeeded: bool | None = None
    oldest_first: bool = False


@dataclass(frozen=True, slots=True)
class Happened:
    id: int
    at: int
    kind: EventKind
    sandbox_id: SandboxId
    data: dict[str, Any]
    template_id: TemplateId | None
    """None: the sandbox has been forgotten."""
    alias: str | None


async def page(tx: Tx, wanted: Wanted, *, offset: int, limit: int) -> tuple[list[Happened], int]:
    """A page, and how many there are in all."""
    found = _found(wanted)
    total = (await tx.execute(select(func.count()).select_from(found.subquery()))).scalar_one()
    order = events.c.id if wanted.oldest_first else events.c.id.desc()
    rows = await tx.execute(found.order_by(order).limit(limit).offset(offset))
    return [Happened(row[0], row[1], EventKind(row[2]), *row[3:]) for row in rows], total


def _found(wanted: Wanted) -> Select[Any]:
    found = (
        select(
            events.c.id,
            events.c.at,
            events.c.kind,
            events.c.sandbox_id,
            events.c.data,
            sandboxes.c.template_id,
            sandboxes.c.alias,
        )
        .select_from(events)
        .outerjoin(sandboxes, sandboxes.c.id == events.c.sandbox_id)
        .where(
            events.c.team_id == wanted.team_id,
            events.c.at >= wanted.begin,
            events.c.at <= wanted.end,
        )
    )
    if wanted.sandbox_id is not None:
        found = found.where(events.c.sandbox_id == wanted.sandbox_id)
    if wanted.template:
        found = found.where(sandboxes.c.template_id.contains(wanted.template, autoescape=True))
    if wanted.succeeded is not None:
        found = found.where(_of_kind(k for k, v in NAMES.items() if v[1] is wanted.succeeded))
    if wanted.names:
        names = {"resume" if name == "connect" else name for name in wanted.names}
        found = found.where(_of_kind(k for k, v in NAMES.items() if v[0] in names))
    return found


def _of_kind(kinds: Iterable[EventKind]) -> ColumnElement[bool]:
    return events.c.kind.in_([kind.value for kind in kinds])
