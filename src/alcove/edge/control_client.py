"""Questions to control, over a few kept connections; each may be asked twice.

Made of the edge's own parsers rather than an HTTP library: a first request to a sandbox waits for
this, and it takes a fifth of the time.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from alcove.edge.bodies import BadBodyError, Body, Chunked, Length, UntilClose
from alcove.edge.heads import (
    END_OF_HEAD,
    MAX_HEAD_BYTES,
    BadResponseError,
    ResponseHead,
    parse_response,
)

_MAX_IDLE = 16
_MAX_BODY_BYTES = 1024 * 1024
_READ_BYTES = 64 * 1024
_SILENCE_S = 45.0
"""Three times as long as control is ever silent on a stream."""

_UNREADABLE = (asyncio.LimitOverrunError, BadResponseError, BadBodyError, ValueError)

_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class ControlSilentError(Exception):
    """Control gave no usable answer."""

    def __init__(self, message: str, *, is_away: bool = False) -> None:
        super().__init__(message)
        self.is_away = is_away
        """There was no connection, or it broke: control is not running just now."""


class ControlClient:
    def __init__(self, address: tuple[str, int], token: str) -> None:
        self._address = address
        self._token = token
        self._idle: deque[_Connection] = deque()

    async def get(self, path: str, limit_s: float) -> tuple[int, bytes]:
        """Status and body. Raises ControlSilentError."""
        return await self._request(f"GET {path}", "", limit_s)

    async def post(self, path: str, limit_s: float) -> tuple[int, bytes]:
        """Status and body of a POST without a body of its own. Raises ControlSilentError."""
        return await self._request(f"POST {path}", "Content-Length: 0\r\n", limit_s)

    async def _request(self, line: str, lines: str, limit_s: float) -> tuple[int, bytes]:
        host, port = self._address
        request = (
            f"{line} HTTP/1.1\r\nHost: {host}:{port}\r\n"
            f"Authorization: Bearer {self._token}\r\n{lines}\r\n"
        ).encode()
        try:
            async with asyncio.timeout(limit_s):
                return await self._exchange(request)
        except (OSError, EOFError, *_UNREADABLE) as error:
            is_away = isinstance(error, ConnectionError | EOFError)
            raise ControlSilentError(
                f"control at {host}:{port} does not answer", is_away=is_away
            ) from error

    async def lines(self, path: str) -> AsyncIterator[bytes]:
        """The lines of an answer without end, as they come, until control ends it.

        Raises ControlSilentError, also when nothing comes for long.
        """
        host, port = self._address
        request = (
            f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n"
            f"Authorization: Bearer {self._token}\r\n\r\n"
        ).encode()
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(_SILENCE_S):
                reader, writer = await asyncio.open_connection(host, port, limit=MAX_HEAD_BYTES)
                writer.write(request)
                head = parse_response((await reader.readuntil(END_OF_HEAD))[:-2])
            if head.status != 200:
                raise ControlSilentError(f"control answers GET {path} with {head.status}")
            body, rest = _body_of(head), b""
            while not body.done:
                async with asyncio.timeout(_SILENCE_S):
                    data = await reader.read(_READ_BYTES)
                if not data:
                    return
                *lines, rest = (rest + b"".join(body.feed(data)[0])).split(b"\n")
                if len(rest) > _MAX_BODY_BYTES:
                    raise ValueError("control's line is too long")
                for line in filter(None, lines):
                    yield line
        except (OSError, EOFError, *_UNREADABLE) as error:
            raise ControlSilentError(f"control at {host}:{port} does not answer") from error
        finally:
            if writer is not None:
                writer.close()

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()

    async def _exchange(self, request: bytes) -> tuple[int, bytes]:
        while self._idle:
            connection = self._idle.pop()
            if connection[0].at_eof() or connection[1].is_closing():
                connection[1].close()
                continue
            try:
                return await self._ask(connection, request)
            except (OSError, EOFError):
                break  # closed while it was idle; a fresh one shall decide
        host, port = self._address
        fresh = await asyncio.open_connection(host, port, limit=MAX_HEAD_BYTES)
        return await self._ask(fresh, request)

    async def _ask(self, connection: _Connection, request: bytes) -> tuple[int, bytes]:
        reader, writer = connection
        kept = False
        try:
            writer.write(request)
            head = parse_response((await reader.readuntil(END_OF_HEAD))[:-2])
            content = await _read(reader, _body_of(head))
            if head.keep_alive and len(self._idle) < _MAX_IDLE:
                self._idle.append(connection)
                kept = True
            return head.status, content
        finally:
            if not kept:
                writer.close()


def _body_of(head: ResponseHead) -> Body:
    if head.chunked:
        return Chunked()
    if head.length is not None:
        return Length(head.length)
    head.keep_alive = False
    return UntilClose()


async def _read(reader: asyncio.StreamReader, body: Body) -> bytes:
    content = bytearray()
    while not body.done:
        data = await reader.read(_READ_BYTES)
        if not data:
            if isinstance(body, UntilClose):
                break
            raise EOFError
        for piece in body.feed(data)[0]:
            content += piece
        if len(content) > _MAX_BODY_BYTES:
            raise ValueError("control's answer is too long")
    return bytes(content)
