"""How errors become answers: our own, those of the framework, and bodies that do not fit."""

from typing import Any

import structlog
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response

from alcove.control.api import json_response
from alcove.control.errors import ControlError
from alcove.wire.errors import ErrorCode, Problem

_log = structlog.get_logger()


def add_answers(app: FastAPI) -> None:
    @app.exception_handler(ControlError)
    async def _control(request: Request, error: ControlError) -> Response:
        if error.status >= 500 or error.detail:
            _log.warning(
                "request.failed",
                path=request.url.path,
                status=error.status,
                error=error.message,
                detail=error.detail,
            )
        return json_response(error.problem().body(), error.status, dict(error.headers))

    @app.exception_handler(RequestValidationError)
    async def _invalid(_request: Request, error: RequestValidationError) -> Response:
        problem = Problem(400, _describe_invalid(error), ErrorCode.INVALID_REQUEST)
        return json_response(problem.body(), 400)

    @app.exception_handler(StarletteHTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        return json_response(
            _http_problem(request, error).body(), error.status_code, dict(error.headers or {})
        )


def _http_problem(request: Request, error: HTTPException) -> Problem:
    route = f"{request.method} {request.url.path[:200]}"
    match error.status_code:
        case 404:
            return Problem(404, f"{route} is not a route of this API", ErrorCode.NOT_FOUND)
        case 405:
            text = f"{route} is not a route of this API; the path exists with another method"
            return Problem(405, text, ErrorCode.METHOD_NOT_ALLOWED)
        case 408:
            return Problem(408, str(error.detail), ErrorCode.TOO_SLOW)
        case 413:
            return Problem(413, str(error.detail), ErrorCode.TOO_LARGE)
        case 400:
            text = f"Error when parsing request: {error.detail}"
            return Problem(400, text, ErrorCode.INVALID_REQUEST)
        case _:
            return Problem(error.status_code, str(error.detail))


def _describe_invalid(error: RequestValidationError) -> str:
    first: dict[str, Any] = error.errors()[0]
    if first["type"] == "json_invalid":
        position = first["loc"][-1]
        return f"Error when parsing request: {first['ctx']['error']} at character {position}"
    where = ".".join(str(part)[:80] for part in first["loc"])
    if first["loc"] == ("body",):
        return (
            "Error when parsing request: a JSON object is expected as body, with Content-Type: "
            f"application/json ({first['msg']})"
        )
    return f"validation error: {where}: {first['msg']}"


def describe(app: FastAPI) -> None:
    """Serve an OpenAPI document that says what is really answered: 400, never FastAPI's 422."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        document = made()
        for operations in document["paths"].values():
            for operation in operations.values():
                unprocessable = operation["responses"].get("422", {})
                if "HTTPValidationError" in str(unprocessable):
                    del operation["responses"]["422"]
        for unused in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(unused, None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # how FastAPI has it replaced
