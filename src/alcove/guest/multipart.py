"""multipart/form-data as it streams in (RFC 7578), without I/O.

    PREAMBLE ──delimiter──▶ HEADERS ──blank line──▶ BODY ──delimiter──▶ HEADERS …
        └────────────────── closing delimiter ───────┴──────────────▶ EPILOGUE

Feed it chunks cut anywhere; it holds back at most one delimiter or one header block.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from urllib.parse import unquote_to_bytes

MAX_BOUNDARY_BYTES = 256
MAX_HEADER_BYTES = 16 * 1024
MAX_PARTS = 100_000
_MAX_PADDING_BYTES = 64

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_HEADER = re.compile(rb"(" + _TOKEN + rb"):[ \t]*(.*?)[ \t]*", re.DOTALL)
_MAIN_VALUE = re.compile(rb"[ \t]*([^;]*?)[ \t]*(?=;|\Z)")
_PARAMETER = re.compile(
    rb";[ \t]*(?:(" + _TOKEN + rb')[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^;"]*?))[ \t]*)?(?=;|\Z)',
    re.DOTALL,
)


class MultipartError(ValueError):
    """The body or one of its headers is malformed. The text says how."""


@dataclass(frozen=True, slots=True)
class PartStart:
    field: str | None
    """The form field's name."""
    filename: str | None
    """In full, directories included."""


@dataclass(frozen=True, slots=True)
class PartData:
    data: bytes


@dataclass(frozen=True, slots=True)
class PartEnd:
    pass


Event = PartStart | PartData | PartEnd


class _State(Enum):
    PREAMBLE = auto()
    HEADERS = auto()
    BODY = auto()
    EPILOGUE = auto()


class _Tail(Enum):
    """What follows the bytes of a delimiter."""

    NEXT_PART = auto()
    CLOSE = auto()
    INCOMPLETE = auto()
    NOT_OURS = auto()


class Parser:
    """Turns chunks of a body into events."""

    def __init__(self, boundary: bytes) -> None:
        if not 0 < len(boundary) <= MAX_BOUNDARY_BYTES or re.search(rb"[\r\n]", boundary):
            raise MultipartError(
                f"the boundary must have 1 to {MAX_BOUNDARY_BYTES} bytes and no line break"
            )
        self._delimiter = b"\r\n--" + boundary
        self._state = _State.PREAMBLE
        # A body may open with a delimiter that no line break precedes.
        self._held = b"\r\n"
        self._parts = 0

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Yield the events of a chunk. Must be exhausted before the next chunk is fed."""
        data = self._held + chunk if self._held else chunk
        self._held = b""
        position = 0
        while self._state is not _State.EPILOGUE:
            if self._state is _State.HEADERS:
                end = data.find(b"\r\n\r\n", position)
                if (end if end >= 0 else len(data)) - position > MAX_HEADER_BYTES:
                    raise MultipartError(f"a part's headers exceed {MAX_HEADER_BYTES} bytes")
                if end < 0:
                    self._held = data[position:]
                    return
                yield self._start_part(data[position:end])
                position = end + 4
                self._state = _State.BODY
                continue
            found, tail, resume = self._find_delimiter(data, position)
            if self._state is _State.BODY and found > position:
                yield PartData(data[position:found])
            if tail is _Tail.INCOMPLETE:
                self._held = data[found:]
                return
            if self._state is _State.BODY:
                yield PartEnd()
            self._state = _State.EPILOGUE if tail is _Tail.CLOSE else _State.HEADERS
            position = resume

    def finish(self) -> None:
        """Call at the end of the body. Raises MultipartError if parts of it are missing."""
        if self._state is not _State.EPILOGUE:
            raise MultipartError("the body ended before its final boundary")

    def _find_delimiter(self, data: bytes, position: int) -> tuple[int, _Tail, int]:
        """Where the content ends, why, and where to go on."""
        search = position
        while True:
            found = data.find(self._delimiter, search)
            if found < 0:
                return self._possible_start(data, search), _Tail.INCOMPLETE, 0
            tail, resume = _read_tail(data, found + len(self._delimiter))
            if tail is not _Tail.NOT_OURS:
                return found, tail, resume
            search = found + len(self._delimiter)

    def _possible_start(self, data: bytes, position: int) -> int:
        """Index of a delimiter that the end of `data` may have cut off, or the length."""
        start = data.find(b"\r", max(position, len(data) - len(self._delimiter) + 1))
        while start >= 0 and not self._delimiter.startswith(data[start:]):
            start = data.find(b"\r", start + 1)
        return start if start >= 0 else len(data)

    def _start_part(self, block: bytes) -> PartStart:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise MultipartError(f"the body has more than {MAX_PARTS} parts")
        headers = _parse_headers(block)
        encoding = headers.get(b"content-transfer-encoding", b"binary").lower()
        if encoding not in {b"binary", b"7bit", b"8bit"}:
            raise MultipartError("a part's Content-Transfer-Encoding must be binary")
        disposition = headers.get(b"content-disposition")
        if disposition is None:
            return PartStart(None, None)
        kind, parameters = parse_parameters(disposition)
        if kind != b"form-data":
            return PartStart(None, None)
        field = parameters.get(b"name")
        return PartStart(None if field is None else _text(field), _filename(parameters))


def boundary_of(content_type: str) -> bytes:
    """The boundary that a Content-Type header names."""
    _, parameters = parse_parameters(content_type.encode("latin-1", "replace"))
    boundary = parameters.get(b"boundary")
    if boundary is None:
        raise MultipartError("the Content-Type names no boundary")
    return boundary


def parse_parameters(value: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """Split `value; name=token; name="quoted"`; the value and the names come in lower case."""
    main = _MAIN_VALUE.match(value)
    assert main is not None
    position = main.end()
    parameters: dict[bytes, bytes] = {}
    while position < len(value):
        match = _PARAMETER.match(value, position)
        if match is None:
            raise MultipartError("a header's parameters are malformed")
        position = match.end()
        if match[1] is None:
            continue  # a stray semicolon
        name = match[1].lower()
        if name in parameters:
            raise MultipartError("a header repeats a parameter")
        quoted = match[2]
        # Only quotes and backslashes are escaped: old browsers send C:\dir\file as it is.
        parameters[name] = match[3] if quoted is None else re.sub(rb'\\(["\\])', rb"\1", quoted)
    return main[1].lower(), parameters


def _read_tail(data: bytes, position: int) -> tuple[_Tail, int]:
    rest = data[position : position + _MAX_PADDING_BYTES + 2]
    if rest.startswith(b"--"):
        return _Tail.CLOSE, position + 2
    line_end = rest.lstrip(b" \t")
    if line_end.startswith(b"\r\n"):
        # The break stays: a part without headers has its blank line right here.
        return _Tail.NEXT_PART, position + len(rest) - len(line_end)
    cut_off = position + len(rest) == len(data) and len(rest) < _MAX_PADDING_BYTES + 2
    if cut_off and (line_end in {b"", b"\r"} or rest == b"-"):
        return _Tail.INCOMPLETE, 0
    return _Tail.NOT_OURS, 0


def _parse_headers(block: bytes) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    for line in block.split(b"\r\n"):
        if not line:
            continue  # the break that ends the delimiter's own line
        match = _HEADER.fullmatch(line)
        if match is None:
            raise MultipartError("a part has a malformed header line")
        name = match[1].lower()
        if name in headers:
            raise MultipartError("a part repeats a header")
        headers[name] = match[2]
    return headers


def _filename(parameters: dict[bytes, bytes]) -> str | None:
    extended = parameters.get(b"filename*")
    if extended is not None:
        return _decode_extended(extended)
    plain = parameters.get(b"filename")
    if plain is None:
        return None
    # What browsers and HTTP clients send in place of a quote and of line breaks.
    for escape, byte in ((b"%22", b'"'), (b"%0D", b"\r"), (b"%0A", b"\n")):
        plain = plain.replace(escape, byte)
    return _text(plain)


def _decode_extended(value: bytes) -> str:
    """Decode RFC 5987's charset'language'percent-encoded."""
    pieces = value.split(b"'", 2)
    if len(pieces) != 3 or pieces[0].lower() not in {b"utf-8", b"iso-8859-1"}:
        raise MultipartError("filename* must be UTF-8''percent-encoded")
    raw = unquote_to_bytes(pieces[2])
    return raw.decode("latin-1") if pieces[0].lower() == b"iso-8859-1" else _text(raw)


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise MultipartError("names of fields and files must be UTF-8") from error
