"""GET /sandboxes/events (PPIO's shape) and POST /sandboxes/{id}/reset."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from alcove.control.api import MAX_INT64, Text, errors, json_response
from alcove.control.clock import DAY_US, MICROSECONDS, rfc3339
from alcove.control.db import Database
from alcove.control.errors import InvalidRequestError
from alcove.control.sandboxes import activity
from alcove.control.sandboxes import activity_schemas as schemas
from alcove.control.sandboxes.activity import NAMES, Happened, Wanted
from alcove.control.sandboxes.resets import Resets
from alcove.control.sandboxes.resets import Wanted as ResetWanted
from alcove.control.sandboxes.routes import SandboxIdOf
from alcove.control.teams.auth import CallerOf
from alcove.wire.ids import InvalidIdError, SandboxId, parse_sandbox_id

router = APIRouter(tags=["sandboxes"])

_USUAL_US = 30 * DAY_US
_LONGEST_US = 60 * DAY_US
_LATEST_S = MAX_INT64 // MICROSECONDS
Moment = Annotated[int | None, Query(ge=0, le=_LATEST_S, description="Seconds since the epoch.")]


@router.get("/sandboxes/events", response_model=schemas.Events, responses=errors())
async def list_events(
    *,
    request: Request,
    caller: CallerOf,
    start_time: Annotated[Moment, Query(alias="startTime")] = None,
    end_time: Annotated[Moment, Query(alias="endTime")] = None,
    sandbox_id: Annotated[Text, Query(alias="sandboxID")] = "",
    template_id: Annotated[Text, Query(alias="templateID", description="A part of it.")] = "",
    events: Annotated[Text, Query(description="Names joined by commas: create, pause, ...")] = "",
    state: Annotated[str, Query(pattern="^(success|failed)?$")] = "",
    order_asc: Annotated[bool, Query(alias="orderAsc")] = False,
    offset: Annotated[int, Query(ge=0, le=MAX_INT64)] = 0,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
) -> Response:
    """What happened to the team's sandboxes, newest first; at most 60 days, 30 unless asked."""
    db: Database = request.app.state.db
    begin, end = _window(request.app.state.clock(), start_time, end_time)
    wanted = Wanted(
        team_id=caller.team_id,
        begin=begin,
        end=end,
        sandbox_id=_read_id(sandbox_id),
        template=template_id,
        names=[name.strip() for name in events.split(",") if name.strip()],
        succeeded=None if not state else state == "success",
        oldest_first=order_asc,
    )
    async with db.reading() as tx:
        found, total = await activity.page(tx, wanted, offset=offset, limit=limit)
    items = [_item(happened) for happened in found]
    more = offset + len(items) < total
    return json_response({"items": items, "total": total, "hasMore": more})


@router.post(
    "/sandboxes/{sandbox_id}/reset",
    response_model=schemas.ResetDone,
    responses=errors(404, 409, 429, 503, 504),
)
async def reset(
    request: Request,
    caller: CallerOf,
    sandbox_id: SandboxIdOf,
    body: schemas.Reset | None = None,
) -> Response:
    """Drop the sandbox's memory, keep its disk and start it anew, unless `resume` is false."""
    resets: Resets = request.app.state.resets
    wanted = body or schemas.Reset()
    created = await resets.reset(
        caller,
        sandbox_id,
        ResetWanted(wanted.resume, wanted.timeout, _network(wanted)),
    )
    return json_response({"trafficAccessToken": created.traffic_token})


def _network(body: schemas.Reset) -> dict[str, Any] | None:
    if body.network is not None:
        return body.network.model_dump(exclude_unset=True)
    if body.allowPublicTraffic is not None:
        return {"allowPublicTraffic": body.allowPublicTraffic}
    return None


def _window(now: int, start_s: int | None, end_s: int | None) -> tuple[int, int]:
    end = now if end_s is None else end_s * MICROSECONDS
    begin = max(0, end - _USUAL_US) if start_s is None else start_s * MICROSECONDS
    if begin > end:
        raise InvalidRequestError("startTime must not be after endTime")
    if end - begin > _LONGEST_US:
        raise InvalidRequestError("startTime and endTime must not be more than 60 days apart")
    return begin, end


def _read_id(text: str) -> SandboxId | None:
    try:
        return parse_sandbox_id(text) if text else None
    except InvalidIdError:
        raise InvalidRequestError("Invalid sandbox ID") from None


def _item(happened: Happened) -> dict[str, Any]:
    name, succeeded = NAMES[happened.kind]
    return {
        "eventID": str(happened.id),
        "recordAt": rfc3339(happened.at),
        "templateID": happened.template_id or "",
        "templateName": happened.alias or "",
        "sandboxID": happened.sandbox_id,
        "eventName": name,
        "state": "success" if succeeded else "failed",
        "errorMsg": "" if succeeded else str(happened.data.get("cause", "")),
        "statusCode": 200 if succeeded else 500,
    }
