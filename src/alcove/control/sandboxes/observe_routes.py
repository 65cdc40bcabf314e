"""The routes that show what sandboxes did and use: metrics and logs."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from alcove.control.api import MAX_INT64, Direction, LogLevel, Text, errors, json_response
from alcove.control.clock import MICROSECONDS
from alcove.control.db import Database
from alcove.control.errors import InvalidRequestError
from alcove.control.sandboxes import history, logs, schemas, store, views
from alcove.control.sandboxes.logs import SandboxLogs
from alcove.control.sandboxes.routes import SandboxIdOf
from alcove.control.teams.auth import CallerOf
from alcove.wire.ids import InvalidIdError, SandboxId, parse_sandbox_id

router = APIRouter(tags=["sandboxes"])

_MAX_BULK = 100
_MAX_LOGS = 1000
_FAR_S = MAX_INT64 // MICROSECONDS
Moment = Annotated[int | None, Query(ge=0, le=MAX_INT64, description="Seconds since the epoch.")]
MomentMs = Annotated[
    int | None, Query(ge=0, le=MAX_INT64, description="Milliseconds since the epoch.")
]


async def _database(request: Request) -> Database:
    db: Database = request.app.state.db
    return db


async def _logs(request: Request) -> SandboxLogs:
    found: SandboxLogs = request.app.state.sandbox_logs
    return found


DatabaseOf = Annotated[Database, Depends(_database)]
LogsOf = Annotated[SandboxLogs, Depends(_logs)]


@router.get("/sandboxes/metrics", response_model=schemas.Metrics, responses=errors())
async def newest_metrics(
    caller: CallerOf,
    db: DatabaseOf,
    sandbox_ids: Annotated[list[Text], Query(description="Ids joined by commas; at most 100.")],
) -> Response:
    """The newest metrics of several sandboxes; those without any are left out."""
    ids = _parse_ids([part for value in sandbox_ids for part in value.split(",") if part])
    async with db.reading() as tx:
        points = await history.newest(tx, await store.owned(tx, caller.team_id, ids))
    return json_response(
        {"sandboxes": {point.sandbox_id: views.metric_json(point) for point in points}}
    )


@router.get(
    "/sandboxes/{sandbox_id}/metrics",
    response_model=list[schemas.Metric],
    responses=errors(),
)
async def metrics_of(
    caller: CallerOf,
    sandbox_id: SandboxIdOf,
    db: DatabaseOf,
    start: Moment = None,
    end: Moment = None,
) -> Response:
    """Metrics over time, oldest first, about one point in five seconds; kept for a day."""
    if start is not None and end is not None and start > end:
        raise InvalidRequestError("start must not be after end")
    async with db.reading() as tx:
        points: list[history.Point] = []
        if await store.owned(tx, caller.team_id, [sandbox_id]):
            points = await history.read(
                tx,
                sandbox_id,
                start=None if start is None else min(start, _FAR_S) * MICROSECONDS,
                # The whole of the last second counts.
                end=None if end is None else (min(end, _FAR_S - 1) + 1) * MICROSECONDS - 1,
            )
    return json_response([views.metric_json(point) for point in points])


@router.get(
    "/sandboxes/{sandbox_id}/logs",
    response_model=schemas.Logs,
    responses=errors(),
    deprecated=True,
)
async def logs_v1(
    caller: CallerOf,
    sandbox_id: SandboxIdOf,
    sandbox_logs: LogsOf,
    start: MomentMs = None,
    limit: Annotated[int, Query(ge=0, le=2**31 - 1)] = _MAX_LOGS,
) -> Response:
    """Log entries from a moment on, oldest first; at most 1000."""
    entries = logs.select(
        await sandbox_logs.read(caller, sandbox_id),
        cursor_ms=start,
        direction=Direction.FORWARD,
        level=LogLevel.DEBUG,
        search="",
        limit=min(limit, _MAX_LOGS),
    )
    return json_response(
        {
            "logs": [entry.line_json() for entry in entries],
            "logEntries": [entry.to_json() for entry in entries],
        }
    )


@router.get("/v2/sandboxes/{sandbox_id}/logs", response_model=schemas.LogsV2, responses=errors())
async def logs_v2(
    *,
    caller: CallerOf,
    sandbox_id: SandboxIdOf,
    sandbox_logs: LogsOf,
    cursor: MomentMs = None,
    limit: Annotated[int, Query(ge=0, le=_MAX_LOGS)] = _MAX_LOGS,
    direction: Direction = Direction.BACKWARD,
    level: LogLevel = LogLevel.DEBUG,
    search: Annotated[Text, Query(max_length=256)] = "",
) -> Response:
    """Log entries from a moment on, in either direction, filtered."""
    entries = logs.select(
        await sandbox_logs.read(caller, sandbox_id),
        cursor_ms=cursor,
        direction=direction,
        level=level,
        search=search,
        limit=limit,
    )
    return json_response({"logs": [entry.to_json() for entry in entries]})


def _parse_ids(texts: list[str]) -> set[SandboxId]:
    if not texts or len(texts) > _MAX_BULK:
        raise InvalidRequestError(f"sandbox_ids must name 1 to {_MAX_BULK} sandboxes")
    try:
        return {parse_sandbox_id(text) for text in texts}
    except InvalidIdError:
        raise InvalidRequestError("Invalid sandbox ID") from None
