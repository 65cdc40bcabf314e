"""The SQL of sandboxes. Results are written guarded by generation and by the states they fit."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ColumnElement,
    and_,
    bindparam,
    func,
    insert,
    or_,
    select,
)

from alcove.control.db import Tx
from alcove.control.sandboxes.states import ALIVE, IdleAction, State
from alcove.control.sandboxes.tables import sandbox_pairs, sandboxes
from alcove.wire.ids import BuildId, NodeId, SandboxId, SnapshotId, TeamId, TemplateId
from alcove.wire.states import PauseReason, StopReason


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One sandbox: what was meant, and what is known."""

    id: SandboxId
    generation: int
    state: State
    team_id: TeamId
    template_id: TemplateId
    build_id: BuildId
    alias: str | None
    node_id: NodeId
    vcpu_count: int
    memory_mib: int
    disk_mib: int
    envd_version: str
    created_at: int
    started_at: int
    end_at: int
    start_deadline: int
    """A start that has no result by then is given up by the reconcile step."""
    stopped_at: int | None
    stop_reason: StopReason | None
    metadata: dict[str, str]
    network: dict[str, Any]
    """The network settings as the client gave them."""
    allow_internet: bool | None
    public_traffic: bool
    keyed: bool
    """Made with an idempotency key: its maker will ask again, so a start is worth finishing."""
    timeout_s: int
    auto_pause: bool
    auto_pause_memory: bool
    auto_resume: bool
    idle_after_s: int | None
    idle_action: IdleAction | None
    freeze_after_s: int | None
    snapshot_id: SnapshotId | None
    """What this life was, or shall be, started from; None: the snapshot of its build."""
    saving_id: SnapshotId | None
    """The snapshot a pause under way writes."""
    paused_at: int | None
    pause_reason: PauseReason | None
    pause_memory: bool
    """Whether the pause, under way or done, keeps memory; a resume without it reboots."""
    unresponsive: bool
    """The agent inside did not answer when it was paused."""
    boots: int
    root_id: SandboxId
    parent_id: SandboxId | None
    origin_snapshot_id: SnapshotId | None
    depth: int
    changes: dict[str, Any]
    """What the last start from a snapshot made its own (wire/node.py, SandboxReport)."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which running sandboxes of a team to list, and in what order."""

    team_id: TeamId
    pairs: tuple[tuple[str, str], ...] = ()
    template_ids: Sequence[TemplateId] | None = None
    started_after: int | None = None
    descending: bool = True


@dataclass(frozen=True, slots=True)
class Route:
    """What the edge must know to reach a sandbox."""

    sandbox_id: SandboxId
    generation: int
    node_id: NodeId
    public_traffic: bool
    network: dict[str, Any]


_ENUMS: dict[str, type[StrEnum]] = {
    "stop_reason": StopReason,
    "pause_reason": PauseReason,
    "idle_action": IdleAction,
}

# Statements of the hot path are built once: building costs more than SQLite's work on them.
_INSERT = insert(sandboxes)
_COUNT_ALIVE = (
    select(func.count())
    .select_from(sandboxes)
    .where(
        sandboxes.c.team_id == bindparam("team"),
        sandboxes.c.state.in_([state.value for state in sorted(ALIVE)]),
    )
)
_FIND_ROUTE = select(
    sandboxes.c.id,
    sandboxes.c.generation,
    sandboxes.c.node_id,
    sandboxes.c.public_traffic,
    sandboxes.c.network,
).where(
    sandboxes.c.id == bindparam("sandbox"),
    sandboxes.c.state == State.RUNNING.value,
    sandboxes.c.end_at > bindparam("now"),
)


async def insert_sandbox(tx: Tx, sandbox: Sandbox) -> None:
    values = {name: getattr(sandbox, name) for name in Sandbox.__dataclass_fields__}
    enums = {name: None if values[name] is None else values[name].value for name in _ENUMS}
    await tx.execute(_INSERT, values | enums | {"state": sandbox.state.value})
    if sandbox.metadata:
        rows = [
            {"sandbox_id": sandbox.id, "digest": digest(*pair)} for pair in sandbox.metadata.items()
        ]
        await tx.execute(insert(sandbox_pairs), rows)


async def find(tx: Tx, sandbox_id: SandboxId) -> Sandbox | None:
    row = (await tx.execute(select(sandboxes).where(sandboxes.c.id == sandbox_id))).one_or_none()
    return None if row is None else read(row)


async def find_visible(tx: Tx, team_id: TeamId, sandbox_id: SandboxId, now: int) -> Sandbox | None:
    """A running sandbox of the team whose time is not over."""
    found = select(sandboxes).where(sandboxes.c.id == sandbox_id, visible(team_id, now))
    row = (await tx.execute(found)).one_or_none()
    return None if row is None else read(row)


async def find_route(tx: Tx, sandbox_id: SandboxId, now: int) -> Route | None:
    row = (await tx.execute(_FIND_ROUTE, {"sandbox": sandbox_id, "now": now})).one_or_none()
    return None if row is None else Route(*row)


async def owned(tx: Tx, team_id: TeamId, sandbox_ids: Iterable[SandboxId]) -> list[SandboxId]:
    """Those of the ids that are or were sandboxes of the team."""
    found = select(sandboxes.c.id).where(
        sandboxes.c.team_id == team_id, sandboxes.c.id.in_(list(sandbox_ids))
    )
    return list((await tx.execute(found)).scalars())


async def page(
    tx: Tx, wanted: Filter, *, now: int, after: tuple[int, str] | None, limit: int
) -> list[Sandbox]:
    found = select(sandboxes).where(*_conditions(wanted, now))
    started, ident = sandboxes.c.started_at, sandboxes.c.id
    if after is not None:
        at, sandbox_id = after
        beyond = started < at if wanted.descending else started > at
        beyond_same = ident < sandbox_id if wanted.descending else ident > sandbox_id
        found = found.where(or_(beyond, and_(started == at, beyond_same)))
    order = (started.desc(), ident.desc()) if wanted.descending else (started.asc(), ident.asc())
    rows = await tx.execute(found.order_by(*order).limit(limit))
    return [read(row) for row in rows]


async def count(tx: Tx, wanted: Filter, *, now: int) -> int:
    counted = select(func.count()).select_from(sandboxes).where(*_conditions(wanted, now))
    found: int = (await tx.execute(counted)).scalar_one()
    return found


async def count_alive(tx: Tx, team_id: TeamId) -> int:
    counted: int = (await tx.execute(_COUNT_ALIVE, {"team": team_id})).scalar_one()
    return counted


async def count_by_state(tx: Tx) -> dict[State, int]:
    """How many sandboxes are in each of the living states."""
    counted = select(sandboxes.c.state, func.count()).group_by(sandboxes.c.state)
    rows = await tx.execute(counted.where(sandboxes.c.state.in_([state.value for state in ALIVE])))
    found = {State(state): number for state, number in rows}
    return {state: found.get(state, 0) for state in sorted(ALIVE)}


async def list_in(tx: Tx, states: Iterable[State], *, node_id: NodeId) -> list[Sandbox]:
    found = select(sandboxes).where(
        sandboxes.c.state.in_([state.value for state in states]), sandboxes.c.node_id == node_id
    )
    return [read(row) for row in await tx.execute(found)]


async def states_of(
    tx: Tx, sandbox_ids: Sequence[SandboxId], *, team_id: TeamId | None = None
) -> dict[SandboxId, tuple[State, int]]:
    """State and generation of the sandboxes that are known, or known as this team's."""
    of_team = () if team_id is None else (sandboxes.c.team_id == team_id,)
    found: dict[SandboxId, tuple[State, int]] = {}
    for begin in range(0, len(sandbox_ids), 500):
        rows = await tx.execute(
            select(sandboxes.c.id, sandboxes.c.state, sandboxes.c.generation).where(
                sandboxes.c.id.in_(sandbox_ids[begin : begin + 500]), *of_team
            )
        )
        found |= {row[0]: (State(row[1]), row[2]) for row in rows}
    return found


async def running_ids(tx: Tx, node_id: NodeId) -> set[SandboxId]:
    found = select(sandboxes.c.id).where(
        sandboxes.c.state == State.RUNNING.value, sandboxes.c.node_id == node_id
    )
    return set((await tx.execute(found)).scalars())


async def next_end(tx: Tx) -> int | None:
    """When the next running sandbox expires."""
    earliest = select(func.min(sandboxes.c.end_at))
    found: int | None = (
        await tx.execute(earliest.where(sandboxes.c.state == State.RUNNING.value))
    ).scalar_one_or_none()
    return found


def digest(key: str, value: str) -> str:
    """Stands for one metadata pair; the length keeps ("a", "bc") and ("ab", "c") apart."""
    return hashlib.sha256(f"{len(key)}:{key}{value}".encode()).hexdigest()


def visible(team_id: TeamId, now: int) -> ColumnElement[bool]:
    return and_(
        sandboxes.c.team_id == team_id,
        sandboxes.c.state == State.RUNNING.value,
        sandboxes.c.end_at > now,
    )


def _conditions(wanted: Filter, now: int) -> list[ColumnElement[bool]]:
    conditions = [visible(wanted.team_id, now)]
    if wanted.template_ids is not None:
        conditions.append(sandboxes.c.template_id.in_(wanted.template_ids))
    if wanted.started_after is not None:
        conditions.append(sandboxes.c.started_at >= wanted.started_after)
    for key, value in wanted.pairs:
        matching = select(sandbox_pairs.c.sandbox_id).where(
            sandbox_pairs.c.digest == digest(key, value)
        )
        conditions.append(sandboxes.c.id.in_(matching))
    return conditions


def read(row: Any) -> Sandbox:
    """A row of the table as what it means."""
    values = dict(row._mapping)  # noqa: SLF001 - public API of SQLAlchemy despite its name
    values["state"] = State(values["state"])
    for name, kind in _ENUMS.items():
        values[name] = None if values[name] is None else kind(values[name])
    return Sandbox(**values)
