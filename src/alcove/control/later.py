"""What clients may ask for and this version does not have; the answer says so instead of 404."""

import re
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from starlette.responses import Response

from alcove.control.api import errors
from alcove.control.errors import NotAvailableError
from alcove.control.teams.auth import CallerOf

_LATER: tuple[tuple[str, str, str], ...] = (
    ("POST", "/templates", "template builds of the first version"),
    ("POST", "/v2/templates", "template builds of the first version"),
    ("POST", "/templates/{template_id}", "template builds of the first version"),
    ("POST", "/templates/{template_id}/builds/{build_id}", "template builds of the first version"),
)
_PARAMETER = re.compile(r"{(\w+)")


def add_routes(app: FastAPI) -> None:
    for method, path, what in _LATER:
        app.add_api_route(
            path,
            _not_yet(what),
            methods=[method],
            status_code=501,
            response_class=Response,
            responses=errors(501),
            tags=["later"],
            summary=f"Not yet: {what}",
            openapi_extra={"parameters": [_path_parameter(n) for n in _PARAMETER.findall(path)]},
        )


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _not_yet(what: str) -> Callable[..., Awaitable[Response]]:
    async def answer(caller: CallerOf) -> Response:  # noqa: ARG001 - only for its check
        raise NotAvailableError(f"{what} are not available in this version of Alcove")

    return answer
