"""Logs of a sandbox: what its machine wrote, merged with the lifecycle events control recorded."""

import json
from dataclasses import dataclass, field
from typing import Any

from alcove.control.api import Direction, LogLevel
from alcove.control.clock import from_seconds, rfc3339
from alcove.control.db import Database
from alcove.control.events import store as events
from alcove.control.events.store import Event, EventKind
from alcove.control.nodes.client import NodeError
from alcove.control.nodes.service import Nodes
from alcove.control.sandboxes import store
from alcove.control.teams.service import Caller
from alcove.wire.ids import SandboxId
from alcove.wire.node import LogEntry
from alcove.wire.states import StopReason

_TEXTS = {
    EventKind.STARTED: "Sandbox started",
    EventKind.FAILED: "Sandbox did not start",
    EventKind.STOPPED: "Sandbox stopped",
    EventKind.TIMEOUT_CHANGED: "Sandbox timeout changed",
    EventKind.PAUSED: "Sandbox paused",
    EventKind.PAUSE_FAILED: "Sandbox could not be paused and runs on",
    EventKind.RESUMED: "Sandbox resumed",
    EventKind.RESUME_FAILED: "Sandbox could not be resumed and stays paused",
    EventKind.FORKED: "Sandbox forked",
    EventKind.SNAPSHOT_CREATED: "Snapshot taken",
    EventKind.SNAPSHOT_DELETED: "Snapshot deleted",
    EventKind.ROLLED_BACK: "Sandbox rolled back",
    EventKind.ROLLBACK_FAILED: "Sandbox could not be rolled back",
}
_FAILURES = {
    EventKind.FAILED,
    EventKind.PAUSE_FAILED,
    EventKind.RESUME_FAILED,
    EventKind.ROLLBACK_FAILED,
}
_EXPECTED_ENDS = {
    reason.value
    for reason in (StopReason.KILLED, StopReason.TIMEOUT, StopReason.IDLE, StopReason.RETENTION)
}


@dataclass(frozen=True, slots=True)
class Entry:
    at: int
    level: LogLevel
    message: str
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def at_ms(self) -> int:
        return self.at // 1000

    def to_json(self) -> dict[str, Any]:
        return {
            "timestamp": rfc3339(self.at),
            "level": self.level.value,
            "message": self.message,
            "fields": self.fields,
        }

    def line_json(self) -> dict[str, Any]:
        """The older form: `line` is itself JSON, which the E2B CLI parses and reads `level` of."""
        line = self.fields | {"level": self.level.value, "message": self.message}
        return {"timestamp": rfc3339(self.at), "line": json.dumps(line, ensure_ascii=False)}


class SandboxLogs:
    def __init__(self, db: Database, nodes: Nodes) -> None:
        self._db = db
        self._nodes = nodes

    async def read(self, caller: Caller, sandbox_id: SandboxId) -> list[Entry]:
        """All entries, oldest first; none for a sandbox the team never had."""
        async with self._db.reading() as tx:
            sandbox = await store.find(tx, sandbox_id)
            if sandbox is None or sandbox.team_id != caller.team_id:
                return []
            recorded = await events.of_sandbox(tx, caller.team_id, sandbox_id)
        try:
            written = await self._nodes.client(sandbox.node_id).logs(sandbox_id)
        except NodeError:
            # What control knows itself is still worth an answer.
            written = []
        entries = [_from_event(event) for event in recorded]
        entries += [_from_node(entry) for entry in written]
        return sorted(entries, key=lambda entry: entry.at)


def select(
    entries: list[Entry],
    *,
    cursor_ms: int | None,
    direction: Direction,
    level: LogLevel,
    search: str,
    limit: int,
) -> list[Entry]:
    """Entries from a moment on, in a direction, that pass the filters."""
    forward = direction is Direction.FORWARD
    chosen = [
        entry
        for entry in (entries if forward else reversed(entries))
        if level.admits(entry.level)
        and search in entry.message
        and (cursor_ms is None or _beyond(entry, cursor_ms, forward=forward))
    ]
    return chosen[:limit]


def _beyond(entry: Entry, cursor_ms: int, *, forward: bool) -> bool:
    return entry.at_ms >= cursor_ms if forward else entry.at_ms <= cursor_ms


def _from_event(event: Event) -> Entry:
    details = {name: str(value) for name, value in event.data.items()}
    failed = event.kind in _FAILURES or (
        event.kind is EventKind.STOPPED and details.get("reason") not in _EXPECTED_ENDS
    )
    return Entry(
        at=event.at,
        level=LogLevel.ERROR if failed else LogLevel.INFO,
        message=_TEXTS.get(event.kind, event.kind.value),
        fields=details | {"logger": "alcove", "event": event.kind.value},
    )


def _from_node(entry: LogEntry) -> Entry:
    known = entry.level in list(LogLevel)
    return Entry(
        at=from_seconds(entry.at),
        level=LogLevel(entry.level) if known else LogLevel.INFO,
        message=entry.message,
        fields={"logger": "node"} | entry.fields,
    )
