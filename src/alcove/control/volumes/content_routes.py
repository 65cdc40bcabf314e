"""/volumecontent: the content API (contract e2b 2.11), passed on to the volume's node.

It has a token of its own, errors of its own ({"code": "<word>", "message"}) and bodies of any size,
which go through in pieces. What is asked is understood by the node (node/volumes).
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import structlog
from fastapi import APIRouter, Request
from starlette.responses import Response

from alcove.control.api import json_response
from alcove.control.nodes.client import NodeError
from alcove.control.passing import Passed
from alcove.control.volumes.service import Volumes
from alcove.wire.ids import InvalidIdError, VolumeId, parse_volume_id
from alcove.wire.tokens import same

_log = structlog.get_logger()

CONTENT = "/volumecontent/"
_METHODS = {
    "path": ["GET", "PATCH", "DELETE"],
    "dir": ["GET", "POST"],
    "file": ["GET", "PUT"],
}
_SILENCE_S = 60.0
"""An upload that brings nothing for so long is given up."""
_SCHEME = "bearer "
_PASSED_ON = ("Content-Type", "Content-Length")

router = APIRouter(include_in_schema=False)


class _SilentError(Exception):
    """The client sends nothing any more."""


async def _content(request: Request, volume_id: str) -> Response:
    volumes: Volumes = request.app.state.volumes
    try:
        wanted = parse_volume_id(volume_id)
    except InvalidIdError:
        return _refusal(400, "INVALID_REQUEST", "the volume id is not a UUID")
    scheme, token = _split(request.headers.get("Authorization", ""))
    if scheme != _SCHEME or not same(token, volumes.token(wanted)):
        return _refusal(401, "UNAUTHENTICATED", "the token is not that of this volume")
    node = await volumes.node_of(wanted)
    if node is None:
        return _refusal(404, "VOLUME_NOT_FOUND", "volume not found")
    what = request.url.path.rpartition("/")[2]
    async with AsyncExitStack() as stack:
        try:
            answer = await stack.enter_async_context(
                node.volume_content(request.method, wanted, what, request.url.query, _body(request))
            )
        except (NodeError, _SilentError) as error:
            return _failed(wanted, error)
        headers = {name: answer.headers[name] for name in _PASSED_ON if name in answer.headers}
        return Passed(answer.pieces, answer.status, headers, stack.pop_all())


def _split(authorization: str) -> tuple[str, str]:
    return authorization[: len(_SCHEME)].lower(), authorization[len(_SCHEME) :].strip()


def _body(request: Request) -> AsyncIterator[bytes] | None:
    has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
    if request.method == "GET" or not has_body:
        return None
    return _pieces(request)


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(_SILENCE_S):
                piece = await anext(stream, None)
        except TimeoutError:
            raise _SilentError("the body came too slowly") from None
        if piece is None:
            return
        if piece:
            yield piece


def _failed(volume_id: VolumeId, error: Exception) -> Response:
    if isinstance(error, _SilentError):
        return _refusal(408, "TOO_SLOW", str(error))
    _log.warning("volume.content_failed", volume_id=volume_id, why=str(error))
    return _refusal(503, "UNAVAILABLE", "the volume's node does not answer; try again in a moment")


def _refusal(status: int, code: str, message: str) -> Response:
    return json_response({"code": code, "message": message}, status)


for _what, _allowed in _METHODS.items():
    router.add_api_route(CONTENT + "{volume_id}/" + _what, _content, methods=_allowed)
