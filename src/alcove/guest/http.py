"""Requests and responses inside the guest: the seam between the HTTP server and what it serves.

app.py parses (h11) and writes; handlers see only these types. A handler is
`async (Request) -> Response`; it raises HttpError for an error with the guest's JSON body
{"code": <status>, "message": "..."} (contract e2b 3.1).
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from alcove.wire.errors import bounded


class HttpError(Exception):
    """An error answer with the guest's JSON body."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        self.message = bounded(message)
        super().__init__(self.message)

    def response(self) -> "Response":
        return Response.json({"code": self.status, "message": self.message}, self.status)


class BodyTruncatedError(Exception):
    """The client went away before the whole request body had arrived."""

    def __init__(self) -> None:
        super().__init__("the request body ended before its announced length; send it again")


@dataclass(slots=True)
class Request:
    method: str
    path: str
    """Decoded path without the query."""
    query: dict[str, str]
    """First value of each query parameter, decoded once; "+" stays "+" (signatures need it)."""
    headers: list[tuple[str, str]]
    """In order, names lower-cased."""
    body: AsyncIterator[bytes]
    """Chunks as they arrive, at most 256 KiB each; raises BodyTruncatedError."""

    def header(self, name: str) -> str | None:
        """First value of a header; `name` in lower case."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises HttpError 413 past `limit` bytes."""
        chunks = bytearray()
        async for chunk in self.body:
            chunks += chunk
            if len(chunks) > limit:
                raise HttpError(413, f"request body is larger than {limit} bytes")
        return bytes(chunks)


@dataclass(frozen=True, slots=True)
class FileRange:
    """A response body read from an open file; the server closes `fd`.

    `count` None: until end of file (for files whose size cannot be trusted, as in /proc).
    """

    fd: int
    offset: int
    count: int | None


Body = bytes | FileRange | AsyncIterator[bytes]


@dataclass(slots=True)
class Response:
    status: int = 200
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: Body = b""
    """bytes and counted FileRange get a Content-Length; everything else is sent chunked. Each item
    of an iterator is flushed at once; its aclose() is called when the client goes away."""

    @classmethod
    def json(
        cls, value: Any, status: int = 200, headers: Iterable[tuple[str, str]] = ()
    ) -> "Response":
        body = json.dumps(value, separators=(",", ":")).encode()
        return cls(status, [("content-type", "application/json"), *headers], body)


Handler = Callable[[Request], Awaitable[Response]]
