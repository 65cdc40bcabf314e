"""GET /teams and /api-keys."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from alcove.control.api import errors, json_response
from alcove.control.teams import schemas, views
from alcove.control.teams.auth import CallerOf
from alcove.control.teams.service import Teams

router = APIRouter(tags=["teams"])


async def _teams(request: Request) -> Teams:
    teams: Teams = request.app.state.teams
    return teams


TeamsService = Annotated[Teams, Depends(_teams)]


@router.get("/teams", response_model=list[schemas.Team], responses=errors())
async def list_teams(caller: CallerOf) -> Response:
    """The caller's team. Keys are stored hashed, so `apiKey` is the key the caller came with."""
    team = {
        "teamID": caller.team_id,
        "name": caller.team.name,
        "apiKey": caller.key,
        "isDefault": True,
    }
    return json_response([team])


@router.get("/api-keys", response_model=list[schemas.Key], responses=errors())
async def list_keys(caller: CallerOf, teams: TeamsService) -> Response:
    return json_response([views.key_json(key) for key in await teams.list_keys(caller)])


@router.post("/api-keys", status_code=201, response_model=schemas.CreatedKey, responses=errors(429))
async def create_key(caller: CallerOf, teams: TeamsService, body: schemas.NewKey) -> Response:
    """Make a key. `key` is shown in this answer only."""
    made, key = await teams.create_key(caller, body.name)
    return json_response(views.key_json(made) | {"key": key}, 201)


@router.patch("/api-keys/{key_id}", responses=errors(404))
async def rename_key(
    key_id: UUID, caller: CallerOf, teams: TeamsService, body: schemas.NewKey
) -> Response:
    await teams.rename_key(caller, str(key_id), body.name)
    return json_response({})


@router.delete("/api-keys/{key_id}", status_code=204, responses=errors(404))
async def revoke_key(key_id: UUID, caller: CallerOf, teams: TeamsService) -> Response:
    """Revoke a key; it stops working at once."""
    await teams.revoke_key(caller, str(key_id))
    return Response(status_code=204)
