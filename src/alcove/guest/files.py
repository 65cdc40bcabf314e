"""The routes of file contents: GET and POST /files, POST /files/compose (contract e2b 3.3)."""

import errno
import json
import os
import stat
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from alcove.guest import download, trees
from alcove.guest.auth import authorize, authorize_files
from alcove.guest.blocking import in_thread
from alcove.guest.entries import presentable
from alcove.guest.environment import Environment
from alcove.guest.http import Handler, HttpError, Request, Response
from alcove.guest.multipart import (
    MultipartError,
    Parser,
    PartData,
    PartEnd,
    PartStart,
    boundary_of,
)
from alcove.guest.refusals import as_http
from alcove.guest.upload import Upload, decoded_body, metadata_of
from alcove.guest.users import InvalidPathError, UnknownUserError, User
from alcove.guest.watchers import Watchers

_FILE_FIELD = "file"
_MAX_COMPOSE_BYTES = 1024 * 1024


def routes(environment: Environment, watchers: Watchers) -> list[tuple[str, str, Handler]]:
    files = _Files(environment, watchers)
    return [
        ("GET", "/files", files.download),
        ("POST", "/files", files.upload),
        ("POST", "/files/compose", files.compose),
    ]


class _Files:
    def __init__(self, environment: Environment, watchers: Watchers) -> None:
        self._environment = environment
        self._watchers = watchers

    async def download(self, request: Request) -> Response:
        authorize_files(request, self._environment)
        user = self._user(request.query.get("username"))
        path = self._resolve(request.query.get("path", ""), user)
        return await download.respond(path, request)

    async def upload(self, request: Request) -> Response:
        authorize_files(request, self._environment)
        user = self._user(request.query.get("username"))
        metadata = metadata_of(request)
        content_type = request.header("content-type") or ""
        kind = content_type.partition(";")[0].strip().lower()
        body = decoded_body(request)
        path = request.query.get("path", "")
        if kind == "application/octet-stream":
            if not path:
                raise HttpError(400, "the path query parameter is required for octet-stream")
            _, upload = self.begin(path, user, metadata)
            return Response.json([await _receive(upload, body)])
        if kind == "multipart/form-data":
            form = _Form(self, path, user, metadata)
            try:
                return Response.json(await form.receive(Parser(boundary_of(content_type)), body))
            except MultipartError as error:
                raise HttpError(400, f"error parsing multipart form: {error}") from error
        raise HttpError(
            400,
            f"unsupported content type '{kind}',"
            " supported: [multipart/form-data, application/octet-stream]",
        )

    async def compose(self, request: Request) -> Response:
        authorize(request, self._environment)
        sources, destination, username = _compose_request(await request.read(_MAX_COMPOSE_BYTES))
        user = self._user(username)
        path = self._resolve(destination, user)
        await in_thread(_compose, [self._resolve(source, user) for source in sources], path, user)
        name = presentable(os.path.basename(path))
        return Response.json({"path": presentable(path), "name": name, "type": "file"})

    def begin(self, path: str, user: User, metadata: dict[str, str]) -> tuple[str, Upload]:
        """An upload and the absolute path it goes to."""
        resolved = self._resolve(path, user)
        return resolved, Upload(resolved, user, metadata, self._watchers.settle)

    def _user(self, name: str | None) -> User:
        try:
            return self._environment.user(name)
        except UnknownUserError as error:
            unknown = error.args[0]
            raise HttpError(
                401, f"error looking up user '{unknown}': user: unknown user {unknown}"
            ) from error

    def _resolve(self, path: str, user: User) -> str:
        try:
            return self._environment.resolve(path, user)
        except InvalidPathError as error:
            raise HttpError(400, str(error)) from error


class _Form:
    """The files of one multipart/form-data body."""

    def __init__(self, files: _Files, path: str, user: User, metadata: dict[str, str]) -> None:
        self._files = files
        self._path = path
        self._user = user
        self._metadata = metadata
        self._taken: set[str] = set()
        self._current: Upload | None = None

    async def receive(self, parser: Parser, body: AsyncIterator[bytes]) -> list[dict[str, Any]]:
        written: list[dict[str, Any]] = []
        try:
            async for chunk in body:
                for event in parser.feed(chunk):
                    match event:
                        case PartStart():
                            self._current = self._begin(event)
                        case PartData(data):
                            if self._current is not None:
                                await self._current.write(data)
                        case PartEnd():
                            if self._current is not None:
                                written.append(await self._current.finish())
                                self._current = None
            parser.finish()
        except BaseException:
            if self._current is not None:
                await self._current.abandon()
            raise
        return written

    def _begin(self, part: PartStart) -> Upload | None:
        if part.field != _FILE_FIELD:
            return None
        target = self._path or part.filename
        if not target:
            raise HttpError(400, "a part has no file name and the request no path query parameter")
        path, upload = self._files.begin(target, self._user, self._metadata)
        normal = os.path.normpath(path)
        if normal in self._taken:
            raise HttpError(400, f"two parts would be written to '{path}'")
        self._taken.add(normal)
        return upload


async def _receive(upload: Upload, body: AsyncIterator[bytes]) -> dict[str, Any]:
    try:
        async for chunk in body:
            await upload.write(chunk)
        return await upload.finish()
    except BaseException:
        await upload.abandon()
        raise


def _compose_request(body: bytes) -> tuple[list[str], str, str | None]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HttpError(400, f"the body is not valid JSON: {error}") from error
    sources = value.get("source_paths") if isinstance(value, dict) else None
    if not isinstance(sources, list) or not sources or not all(map(_is_text, sources)):
        raise HttpError(400, "source_paths must be a list of at least one path")
    destination, username = value.get("destination"), value.get("username")
    if not _is_text(destination) or not destination:
        raise HttpError(400, "destination must be a path")
    if username is not None and not _is_text(username):
        raise HttpError(400, "username must be a text")
    return sources, destination, username


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _compose(sources: list[str], destination: str, owner: User) -> None:
    """Join files into one, then remove them. The destination appears whole or not at all."""
    for source in sources:
        _require_file(source)
    if destination.endswith("/") or os.path.isdir(destination):
        raise HttpError(400, f"path is a directory: {destination}")
    try:
        trees.make_directories(os.path.dirname(destination), owner.uid, owner.gid)
        _join(sources, destination, owner)
        for source in dict.fromkeys(sources):
            # The destination may be one of them, under any name.
            with suppress(FileNotFoundError):
                if not os.path.samefile(source, destination):
                    os.unlink(source)
    except OSError as error:
        raise as_http(error, destination, "composing") from error


def _join(sources: list[str], destination: str, owner: User) -> None:
    temporary = trees.temporary_beside(destination)
    target_fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchown(target_fd, owner.uid, owner.gid)
        for source in sources:
            source_fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                trees.append_file(source_fd, target_fd)
            finally:
                os.close(source_fd)
        os.fchmod(target_fd, 0o644)
        os.rename(temporary, destination)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(target_fd)


def _require_file(path: str) -> None:
    try:
        found = os.stat(path)
    except OSError as error:
        if error.errno == errno.ENOTDIR:
            raise HttpError(404, f"path '{path}' does not exist") from error
        raise as_http(error, path, "opening") from error
    if stat.S_ISDIR(found.st_mode):
        raise HttpError(400, f"path '{path}' is a directory")
    if not stat.S_ISREG(found.st_mode):
        raise HttpError(400, f"path '{path}' is not a regular file")
