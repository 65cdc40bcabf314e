"""Reading HTTP/1.1 requests: the head through h11, a body of known length past it."""

import re
from collections.abc import AsyncIterator
from urllib.parse import unquote

import h11

from alcove.guest.buffers import CHUNK_BYTES, Inbox, Outbox
from alcove.guest.http import BodyTruncatedError, HttpError, Request

MAX_HEAD_BYTES = 64 * 1024

_HEAD_END = re.compile(rb"\n\r?\n")


async def read_head(inbox: Inbox) -> bytes | None:
    """The bytes of the next head, None at the end of the connection."""
    head = bytearray()
    while True:
        data = await inbox.get()
        if not data:
            if head.strip():
                raise HttpError(400, "the connection ended inside a request head")
            return None
        searched = max(len(head) - 2, 0)
        head += data
        if not searched:
            head = head.lstrip(b"\r\n")
            searched = 0
        end = _HEAD_END.search(head, searched)
        if end is not None:
            inbox.put_back(bytes(head[end.end() :]))
            del head[end.end() :]
        if len(head) > MAX_HEAD_BYTES:
            raise HttpError(431, f"the request head is larger than {MAX_HEAD_BYTES} bytes")
        if end is not None:
            return bytes(head)


def parse_head(exchange: h11.Connection, head: bytes) -> h11.Request:
    exchange.receive_data(head)
    try:
        event = exchange.next_event()
    except h11.RemoteProtocolError as error:
        raise HttpError(error.error_status_hint, f"malformed HTTP request: {error}") from error
    # h11 accepts bare line feeds: what it left over then was inside the head for us.
    if not isinstance(event, h11.Request) or exchange.trailing_data[0]:
        raise HttpError(400, "malformed HTTP request head")
    return event


def make_request(head: h11.Request, body: AsyncIterator[bytes]) -> Request:
    """Raises HttpError 400."""
    path, _, query = head.target.decode("latin-1").partition("?")
    return Request(
        method=head.method.decode("latin-1"),
        path=unquote(path),
        query=_parse_query(query),
        headers=[(n.decode("latin-1"), v.decode("latin-1")) for n, v in head.headers],
        body=body,
    )


def _parse_query(text: str) -> dict[str, str]:
    query: dict[str, str] = {}
    for part in filter(None, text.split("&")):
        name, _, value = part.partition("=")
        try:
            query.setdefault(_decode(name), _decode(value))
        except UnicodeDecodeError as error:
            # With the bytes replaced, a path would name another file.
            raise HttpError(400, "the query must be percent-encoded UTF-8") from error
    return query


def _decode(text: str) -> str:
    return unquote(text, errors="strict")


def keeps_alive(head: h11.Request) -> bool:
    tokens = {
        token.strip().lower()
        for name, value in head.headers
        if name == b"connection"
        for token in value.split(b",")
    }
    return head.http_version == b"1.1" and b"close" not in tokens


class Body(AsyncIterator[bytes]):
    """A request body, read from the connection as the handler asks for it."""

    def __init__(
        self, inbox: Inbox, outbox: Outbox, exchange: h11.Connection, head: h11.Request
    ) -> None:
        self._inbox = inbox
        self._outbox = outbox
        self._exchange = exchange
        names = dict(head.headers)
        self._chunked = b"transfer-encoding" in names
        self._left = 0 if self._chunked else int(names.get(b"content-length", b"0"))
        self._done = not self._chunked and self._left == 0

    def __aiter__(self) -> "Body":
        return self

    async def __anext__(self) -> bytes:
        if self._done:
            raise StopAsyncIteration
        if self._exchange.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=100, headers=[])
            self._outbox.write(self._exchange.send(go_on) or b"")
            self._outbox.flush()
        return await (self._next_chunk() if self._chunked else self._next_counted())

    async def _next_counted(self) -> bytes:
        data = await self._inbox.get(min(self._left, CHUNK_BYTES))
        if not data:
            self._done = True
            raise BodyTruncatedError
        self._left -= len(data)
        self._done = self._left == 0
        return data

    async def _next_chunk(self) -> bytes:
        while True:
            try:
                event = self._exchange.next_event()
            except h11.RemoteProtocolError as error:
                self._done = True
                raise HttpError(400, f"the chunked request body is malformed: {error}") from error
            if isinstance(event, h11.Data):
                return bytes(event.data)
            if isinstance(event, h11.EndOfMessage):
                self._done = True
                self._inbox.put_back(self._exchange.trailing_data[0])
                raise StopAsyncIteration
            data = await self._inbox.get()
            if not data:
                self._done = True
                raise BodyTruncatedError
            self._exchange.receive_data(data)

    def left_is_within(self, limit: int) -> bool:
        """Whether the rest of the body will come, and is not known to be more than `limit`."""
        if self._done:
            return not self._failed()
        return self._left <= limit and not self._exchange.they_are_waiting_for_100_continue

    async def discard(self, limit: int) -> bool:
        """Read what is left and drop it; False when that is more than `limit` or fails."""
        if not self.left_is_within(limit):
            return False
        dropped = 0
        try:
            async for data in self:
                dropped += len(data)
                if dropped > limit:
                    return False
        except (BodyTruncatedError, HttpError):
            return False
        return True

    def _failed(self) -> bool:
        """Whether the body ended before its end."""
        return self._exchange.their_state is not h11.DONE if self._chunked else self._left > 0
