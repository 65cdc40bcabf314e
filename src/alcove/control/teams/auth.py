"""Who may call a route: `CallerOf` for a team's API key, `Cluster` for our own processes."""

from typing import Annotated

import structlog
from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from alcove.control.errors import UnauthenticatedError
from alcove.control.teams.service import Caller, Teams
from alcove.wire.tokens import same

_API_KEY = APIKeyHeader(
    name="X-API-Key", scheme_name="ApiKeyAuth", auto_error=False, description="A team's API key."
)
_BEARER = HTTPBearer(
    scheme_name="BearerAuth", auto_error=False, description="The same key, for the E2B CLI."
)
_CLUSTER = HTTPBearer(
    scheme_name="ClusterAuth", auto_error=False, description="Shared by Alcove's own processes."
)


async def _caller(
    request: Request,
    api_key: Annotated[str | None, Security(_API_KEY)],
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
) -> Caller:
    teams: Teams = request.app.state.teams
    key = api_key if api_key is not None or bearer is None else bearer.credentials
    caller = await teams.authenticate(key)
    structlog.contextvars.bind_contextvars(team_id=caller.team_id)
    return caller


async def _cluster(
    request: Request,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_CLUSTER)],
) -> None:
    expected: str = request.app.state.cluster_token
    if bearer is None or not same(bearer.credentials, expected):
        raise UnauthenticatedError("This route is for Alcove's own processes (cluster token)")


CallerOf = Annotated[Caller, Depends(_caller)]
Cluster = Depends(_cluster)
