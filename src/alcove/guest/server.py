"""HTTP/1.1 on asyncio: h11 reads and writes heads, bodies of known length bypass it.

    HEAD ──request──▶ SERVING ──answered, keep-alive──▶ HEAD
      │                  │
      └──eof, malformed──┴──closed by either side──▶ CLOSED

One task per connection. Bytes wait in `Inbox`, which stops reading from the socket when full;
writes wait for the socket. A client that goes away cancels a streamed answer, nothing else.
"""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Sequence
from typing import cast

import h11

from alcove.concurrency import spawn
from alcove.guest.buffers import CHUNK_BYTES, Inbox, Outbox
from alcove.guest.http import (
    BodyTruncatedError,
    FileRange,
    Handler,
    HttpError,
    Request,
    Response,
)
from alcove.guest.reading import (
    MAX_HEAD_BYTES,
    Body,
    keeps_alive,
    make_request,
    parse_head,
    read_head,
)

_log = logging.getLogger(__name__)

_BACKLOG = 1024
# After an early answer, so much of an unread body is read to keep the connection.
_MAX_DISCARD_BYTES = 256 * 1024
_LINGER_S = 2

_NO_BODY_STATUSES = {204, 304}
_streaming: set["_Connection"] = set()


async def serve(handler: Handler, host: str, port: int) -> asyncio.Server:
    """Listen; the server runs until it is closed."""
    loop = asyncio.get_running_loop()
    return await loop.create_server(
        lambda: _Connection(handler), host, port, backlog=_BACKLOG, reuse_address=True
    )


def open_streams() -> int:
    """Answers of this process that are being streamed."""
    return len(_streaming)


class _Connection(asyncio.Protocol):
    """One client connection."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._inbox = Inbox()
        self._task: asyncio.Task[None] | None = None
        self._streaming = False
        self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._outbox = Outbox(self._transport)
        self._inbox.attach(self._transport)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._task = spawn(self._serve(), name="guest connection")

    def data_received(self, data: bytes) -> None:
        self._inbox.put(data)

    def eof_received(self) -> bool:
        self._inbox.end()
        # A client that closed for good looks the same; nobody reads a stream then.
        if self._streaming:
            self._cancel()
        return True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - protocol
        self._lost = True
        self._inbox.end()
        self._outbox.set_writable(writable=True)
        if self._streaming:
            self._cancel()

    def pause_writing(self) -> None:
        self._outbox.set_writable(writable=False)

    def resume_writing(self) -> None:
        self._outbox.set_writable(writable=True)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _serve(self) -> None:
        try:
            while await self._serve_one():
                pass
        except asyncio.CancelledError:
            # Only this class cancels the task: the client is gone.
            self._transport.abort()
        except Exception:
            _log.exception("a connection failed")
            self._transport.abort()
        finally:
            self._outbox.flush()
            self._transport.close()

    async def _serve_one(self) -> bool:
        """Serve one request; say whether another may follow."""
        exchange = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        try:
            head = await read_head(self._inbox)
            if head is None:
                return False
            event = parse_head(exchange, head)
            body = Body(self._inbox, self._outbox, exchange, event)
            request = make_request(event, body)
        except HttpError as error:
            await self._send(exchange, None, error.response(), keep=False)
            await self._linger()
            return False
        response = await self._call(request)
        # What a handler left unread is read and dropped if that is little, else we hang up.
        keep = keeps_alive(event) and body.left_is_within(_MAX_DISCARD_BYTES)
        if await self._send(exchange, event, response, keep=keep):
            return await body.discard(_MAX_DISCARD_BYTES)
        await self._linger()
        return False

    async def _linger(self) -> None:
        """Let a client that still sends read the answer: closing at once would reset it away."""
        if self._lost or self._inbox.ended:
            return
        self._outbox.flush()
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()
        try:
            async with asyncio.timeout(_LINGER_S):
                while await self._inbox.get():
                    pass
        except TimeoutError:
            return

    async def _call(self, request: Request) -> Response:
        try:
            return await self._handler(request)
        except HttpError as error:
            return error.response()
        except BodyTruncatedError as error:
            return HttpError(400, str(error)).response()
        except Exception:
            _log.exception("%s %s failed", request.method, request.path)
            return HttpError(500, "the sandbox agent failed; its log has the details").response()

    async def _send(
        self,
        exchange: h11.Connection,
        event: h11.Request | None,
        response: Response,
        *,
        keep: bool,
    ) -> bool:
        """Write the answer; say whether the connection can go on."""
        body = response.body
        length = _length(response)
        chunked = length is None and event is not None and event.http_version == b"1.1"
        keep = keep and (length is not None or chunked)
        headers = list(response.headers)
        if length is not None and response.status not in _NO_BODY_STATUSES:
            headers.append(("content-length", str(length)))
        elif chunked:
            headers.append(("transfer-encoding", "chunked"))
        if not keep:
            headers.append(("connection", "close"))
        silent = response.status in _NO_BODY_STATUSES or (
            event is not None and event.method == b"HEAD"
        )
        try:
            head = h11.Response(status_code=response.status, headers=_latin1(headers))
            self._outbox.write(exchange.send(head) or b"")
            if isinstance(body, bytes):
                if not silent:
                    self._outbox.write(body)
                    await self._outbox.drain()
            elif isinstance(body, FileRange):
                await self._send_file(body, length, chunked=chunked, silent=silent)
            else:
                await self._send_stream(body, chunked=chunked, silent=silent)
        finally:
            if isinstance(body, FileRange):
                os.close(body.fd)
        return keep and not self._lost

    async def _send_file(
        self, body: FileRange, length: int | None, *, chunked: bool, silent: bool
    ) -> None:
        if silent:
            return
        offset, left = body.offset, length
        while left is None or left > 0:
            size = CHUNK_BYTES if left is None else min(left, CHUNK_BYTES)
            data = _read_at(body.fd, size, offset, seekable=left is not None)
            if not data:
                break
            offset += len(data)
            self._outbox.write(_chunk(data) if chunked else data)
            if left is not None:
                left -= len(data)
            await self._outbox.drain()
            if self._lost:
                return
        if left:
            # Shorter than announced: only a broken connection tells the client so.
            self._transport.abort()
        if chunked:
            self._outbox.write(_LAST_CHUNK)

    async def _send_stream(
        self, body: AsyncIterator[bytes], *, chunked: bool, silent: bool
    ) -> None:
        self._streaming = True
        _streaming.add(self)
        try:
            if self._lost or self._inbox.ended:
                raise asyncio.CancelledError
            if silent:
                return
            async for data in body:
                if data:
                    self._outbox.write(_chunk(data) if chunked else data)
                    await self._outbox.drain()
            if chunked:
                self._outbox.write(_LAST_CHUNK)
        finally:
            self._streaming = False
            _streaming.discard(self)
            close = getattr(body, "aclose", None)
            if close is not None:
                await close()


_LAST_CHUNK = b"0\r\n\r\n"


def _length(response: Response) -> int | None:
    if isinstance(response.body, bytes):
        return len(response.body)
    if isinstance(response.body, FileRange):
        return response.body.count
    return None


def _latin1(headers: Sequence[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _read_at(fd: int, size: int, offset: int, *, seekable: bool) -> bytes:
    return os.pread(fd, size, offset) if seekable else os.read(fd, size)
