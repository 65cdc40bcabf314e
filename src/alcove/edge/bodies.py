"""Bodies of HTTP/1 messages: where they end, and what is in them.

A body eats what arrives (`feed`) and says which pieces are content and which bytes lie behind its
end. Chunked bodies are framed anew on the way out (`chunk`), so no byte of the sender's framing,
extension or trailer reaches the other side.
"""

import re
from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple, Protocol

from alcove.edge.heads import MAX_HEAD_BYTES, RequestHead, ResponseHead, is_field_line

LAST_CHUNK = b"0\r\n\r\n"

_MAX_SIZE_LINE_BYTES = 1024
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")

Piece = bytes | memoryview


class BadBodyError(Exception):
    """The body's chunks are not valid."""


class Body(Protocol):
    done: bool

    def feed(self, data: bytes) -> tuple[Sequence[Piece], bytes]:
        """Content in `data`, and the bytes behind the end of the body. Raises BadBodyError."""
        ...


class Length:
    """A body of a known size."""

    __slots__ = ("_left", "done")

    def __init__(self, size: int) -> None:
        self._left = size
        self.done = size == 0

    def feed(self, data: bytes) -> tuple[Sequence[Piece], bytes]:
        self._left -= len(data)
        if self._left > 0:
            return (data,), b""
        self.done = True
        end = len(data) + self._left
        self._left = 0
        content = data[:end]  # the very same object, not a copy, when all of it is content
        return (content,) if content else (), data[end:]


class UntilClose:
    """A body that ends with the connection."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = False

    def feed(self, data: bytes) -> tuple[Sequence[Piece], bytes]:
        return (data,), b""


class _At(Enum):
    SIZE = auto()
    DATA = auto()
    DATA_END = auto()
    TRAILER = auto()


class Chunked:
    """A chunked body; extensions and trailers are checked and left out."""

    __slots__ = ("_at", "_carry", "_left", "_trailer_bytes", "done")

    def __init__(self) -> None:
        self._at = _At.SIZE
        self._carry = b""
        self._left = 0
        self._trailer_bytes = 0
        self.done = False

    def feed(self, data: bytes) -> tuple[Sequence[Piece], bytes]:
        if self._carry:
            data = self._carry + data
            self._carry = b""
        content: list[Piece] = []
        view = memoryview(data)
        position = 0
        while not self.done and position < len(data):
            if self._at is _At.DATA:
                taken = view[position : position + self._left]
                content.append(taken)
                position += len(taken)
                self._left -= len(taken)
                if self._left == 0:
                    self._at = _At.DATA_END
                continue
            line_end = data.find(b"\r\n", position, position + self._line_limit() + 2)
            if line_end < 0:
                self._keep(data[position:])
                return content, b""
            self._line(data[position:line_end])
            position = line_end + 2
        return content, data[position:]

    def _line_limit(self) -> int:
        match self._at:
            case _At.DATA_END:
                return 0
            case _At.TRAILER:
                return MAX_HEAD_BYTES
            case _:
                return _MAX_SIZE_LINE_BYTES

    def _keep(self, carry: bytes) -> None:
        """An unfinished line waits for its rest, if it can still become a valid one."""
        if len(carry) > self._line_limit() + 1 or b"\n" in carry:
            raise BadBodyError("a line of the chunked body is too long or has no CRLF")
        if self._at is _At.DATA_END and carry != b"\r":
            raise BadBodyError("a chunk is longer than its size")
        self._carry = carry

    def _line(self, line: bytes) -> None:
        match self._at:
            case _At.SIZE:
                size = _SIZE.fullmatch(line)
                if size is None:
                    raise BadBodyError("a chunk's size is not valid")
                self._left = int(size[1], 16)
                self._at = _At.DATA if self._left else _At.TRAILER
            case _At.TRAILER:
                self._trailer_bytes += len(line) + 2
                if self._trailer_bytes > MAX_HEAD_BYTES:
                    raise BadBodyError("the trailers are too long")
                if not line:
                    self.done = True
                elif not is_field_line(line):
                    raise BadBodyError("a trailer is not valid")
            case _:
                self._at = _At.SIZE


class Passed(NamedTuple):
    """What a relay made of some bytes."""

    pieces: Sequence[Piece]
    """To be sent on."""
    size: int
    """Bytes of content in them."""
    surplus: bytes
    """Bytes behind the end of the body."""


class Relay:
    """A body on its way through: read as its sender framed it, framed anew when it is chunked."""

    __slots__ = ("_body", "_rechunk")

    def __init__(self, body: Body, *, rechunk: bool) -> None:
        self._body = body
        self._rechunk = rechunk

    @property
    def done(self) -> bool:
        return self._body.done

    @property
    def ends_with_connection(self) -> bool:
        return isinstance(self._body, UntilClose)

    def feed(self, data: bytes) -> Passed:
        """Raises BadBodyError."""
        content, surplus = self._body.feed(data)
        size = sum(map(len, content))
        if not self._rechunk:
            return Passed(content, size, surplus)
        pieces = chunk(content)
        if self._body.done:
            pieces.append(LAST_CHUNK)
        return Passed(pieces, size, surplus)


def relay_request(head: RequestHead) -> Relay:
    if head.length is None:
        return Relay(Chunked(), rechunk=True)
    return Relay(Length(head.length), rechunk=False)


def relay_response(request: RequestHead, response: ResponseHead) -> Relay:
    """Pair the body of a response with what its client understands (RFC 9112 6.3)."""
    if request.method == b"HEAD" or response.status in {204, 304}:
        return Relay(Length(0), rechunk=False)
    if response.chunked:
        return Relay(Chunked(), rechunk=request.minor > 0)
    if response.length is not None:
        return Relay(Length(response.length), rechunk=False)
    return Relay(UntilClose(), rechunk=False)


def chunk(content: Sequence[Piece]) -> list[Piece]:
    """One chunk around all pieces; nothing for no content (an empty chunk would end the body)."""
    size = sum(map(len, content))
    if size == 0:
        return []
    if len(content) > 8:  # many small pieces cost more as vectors than as one copy
        content = (b"".join(content),)
    return [b"%x\r\n" % size, *content, b"\r\n"]
