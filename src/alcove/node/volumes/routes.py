"""Volumes in the node's API, and the content API (contract e2b 2.11): HTTP in, HTTP out.

Files are moved in pieces, by worker threads: a body is never in memory as a whole.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from alcove.node.errors import InvalidRequestError
from alcove.node.volumes.errors import ContentError, explain, invalid
from alcove.node.volumes.store import Volumes
from alcove.node.volumes.tree import Ownership, Tree, Upload
from alcove.wire.ids import VolumeId
from alcove.wire.node import VolumeSpec

_PIECE_BYTES = 256 * 1024
_AT_ONCE = 16
"""Transfers and listings that work on disks at the same time; more wait."""
_BODY_BYTES = 64 * 1024
_MAX_DIGITS = 10
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


class VolumeApi:
    def __init__(self, volumes: Volumes) -> None:
        self._volumes = volumes
        self._turns = asyncio.Semaphore(_AT_ONCE)

    def routes(self) -> list[Route]:
        one = "/v1/volumes/{id}"
        return [
            Route(one, self._ensure, methods=["PUT"]),
            Route(one, self._report, methods=["GET"]),
            Route(one, self._remove, methods=["DELETE"]),
            Route(f"{one}/path", self._path, methods=["GET", "PATCH", "DELETE"]),
            Route(f"{one}/dir", self._list, methods=["GET"]),
            Route(f"{one}/dir", self._make_directory, methods=["POST"]),
            Route(f"{one}/file", self._read, methods=["GET"]),
            Route(f"{one}/file", self._write, methods=["PUT"]),
        ]

    async def _ensure(self, request: Request) -> Response:
        data = await _body(request)
        spec = VolumeSpec.from_json({"volume_id": _id(request), "size_mib": 0, "inodes": 0} | data)
        numbers = (spec.size_mib, spec.inodes)
        if spec.volume_id != _id(request) or not all(
            type(number) is int and number > 0 for number in numbers
        ):
            raise InvalidRequestError("volume_id, size_mib and inodes are needed")
        return JSONResponse((await self._volumes.ensure(spec)).to_json())

    async def _report(self, request: Request) -> Response:
        await self._volumes.files(_id(request))  # what is not mounted cannot be measured
        return JSONResponse(self._volumes.report(_id(request)).to_json())

    async def _remove(self, request: Request) -> Response:
        await self._volumes.remove(_id(request))
        return Response(status_code=204)

    async def _path(self, request: Request) -> Response:
        path = _given(request, "path")
        if request.method == "GET":
            return await self._answer(request, lambda tree: tree.stat(path))
        if request.method == "DELETE":
            await self._do(request, lambda tree: tree.remove(path))
            return Response(status_code=204)
        owner = _ownership(await _body(request))
        return await self._answer(request, lambda tree: tree.change(path, owner))

    async def _list(self, request: Request) -> Response:
        path, depth = _given(request, "path"), _number(request, "depth")
        wanted = 1 if depth is None else depth
        return await self._answer(request, lambda tree: tree.entries(path, wanted))

    async def _make_directory(self, request: Request) -> Response:
        path, owner, force = _given(request, "path"), _owner(request), _flag(request, "force")
        return await self._answer(
            request, lambda tree: tree.make_directory(path, owner, force=force), 201
        )

    async def _read(self, request: Request) -> Response:
        path = _given(request, "path")
        stack = ExitStack()
        try:
            stack.enter_context(self._volumes.held(_id(request)))
            tree = await self._tree(request)
            fd = await asyncio.to_thread(lambda: stack.enter_context(tree.reading(path)))
            size = os.fstat(fd).st_size
        except BaseException:
            stack.close()
            raise
        headers = {"Content-Length": str(size)}
        return _Closing(self._pieces(fd, size), stack, headers=headers)

    async def _write(self, request: Request) -> Response:
        path, owner, force = _given(request, "path"), _owner(request), _flag(request, "force")
        with ExitStack() as stack:
            stack.enter_context(self._volumes.held(_id(request)))
            tree = await self._tree(request)
            writing = tree.writing(path, owner, force=force)
            upload = await asyncio.to_thread(lambda: stack.enter_context(writing))
            try:
                await self._receive(request, upload)
            except ClientDisconnect:
                return Response(status_code=499)
            shown = await asyncio.to_thread(tree.keep, upload)
        return JSONResponse(shown, 201)

    async def _receive(self, request: Request, upload: Upload) -> None:
        async for piece in request.stream():
            async with self._turns:
                await asyncio.to_thread(_write_all, upload, piece)

    async def _pieces(self, fd: int, size: int) -> AsyncIterator[bytes]:
        left = size
        while left:
            async with self._turns:
                piece = await asyncio.to_thread(os.read, fd, min(left, _PIECE_BYTES))
            if not piece:
                raise OSError("the file became shorter while it was sent")
            left -= len(piece)
            yield piece

    async def _tree(self, request: Request) -> Tree:
        return Tree(await self._volumes.files(_id(request)))

    async def _do(self, request: Request, call: Callable[[Tree], Any]) -> Any:
        with self._volumes.held(_id(request)):
            tree = await self._tree(request)
            async with self._turns:
                return await asyncio.to_thread(call, tree)

    async def _answer(
        self, request: Request, call: Callable[[Tree], Any], status: int = 200
    ) -> Response:
        return JSONResponse(await self._do(request, call), status)


class _Closing(StreamingResponse):
    """Closes what it reads from however it ends."""

    def __init__(
        self, pieces: AsyncIterator[bytes], stack: ExitStack, headers: dict[str, str]
    ) -> None:
        super().__init__(pieces, headers=headers, media_type="application/octet-stream")
        self._stack = stack

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stack.close()


async def _answer(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, ContentError)
    return JSONResponse(error.body(), error.status)


CONTENT_ERRORS: dict[Any, Any] = {ContentError: _answer}
"""How the node's application answers errors of the content API."""


def _write_all(upload: Upload, piece: bytes) -> None:
    left = memoryview(piece)
    while left:
        try:
            left = left[os.write(upload.fd, left) :]
        except OSError as error:
            raise explain(error, upload.path) from error


def _id(request: Request) -> VolumeId:
    return VolumeId(request.path_params["id"])


def _given(request: Request, name: str) -> str:
    value = request.query_params.get(name)
    if value is None:
        raise invalid(f"{name} is missing")
    return value


def _number(request: Request, name: str) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS):
        raise invalid(f"{name} must be a whole number")
    return int(text)


def _flag(request: Request, name: str) -> bool:
    text = request.query_params.get(name, "false").lower()
    if text not in _BOOLEANS:
        raise invalid(f"{name} must be true or false")
    return _BOOLEANS[text]


def _owner(request: Request) -> Ownership:
    return Ownership(*(_number(request, name) for name in ("uid", "gid", "mode")))


def _ownership(data: dict[str, Any]) -> Ownership:
    for name in ("uid", "gid", "mode"):
        if data.get(name) is not None and type(data[name]) is not int:
            raise invalid(f"{name} must be a whole number")
    return Ownership(data.get("uid"), data.get("gid"), data.get("mode"))


async def _body(request: Request) -> dict[str, Any]:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _BODY_BYTES:
            raise invalid(f"the body is larger than {_BODY_BYTES} bytes")
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise invalid("the body must be a JSON object")
    return data
