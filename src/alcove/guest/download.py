"""GET /files: one file as a response, with conditions, ranges and gzip (contract e2b 3.3).

A file whose size cannot be trusted (those of /proc and /sys) is read until it ends; it has no
ranges and no validators.
"""

import errno
import os
import re
import stat
import time
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import quote

from alcove.guest.blocking import in_thread
from alcove.guest.content_type import guess
from alcove.guest.http import FileRange, HttpError, Request, Response
from alcove.guest.refusals import as_http

_CHUNK_BYTES = 256 * 1024
_HEAD_BYTES = 64 * 1024
_GZIP_FORMAT = 31
# Sandboxes pay for the time of compression; most of the gain comes with the first level. What is
# compressed already is sent as it is or, to a client that takes nothing but gzip, stored (level 0).
_FAST, _STORED = 1, 0
# HTTP libraries offer gzip whether their user wants it or not. One core packs 110 MB/s, less than
# most networks carry, so larger files are packed for those who ask for nothing else (as the SDKs do
# with gzip=True).
_PACKED_UNASKED_MAX_BYTES = 1024 * 1024
_WORTH_PACKING = 0.9

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_RANGE = re.compile(r"bytes=[ \t]*(\d*)-(\d*)[ \t]*", re.ASCII)
_CONDITIONS = (
    "range",
    "if-match",
    "if-none-match",
    "if-modified-since",
    "if-unmodified-since",
    "if-range",
)
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = (
    *("Jan", "Feb", "Mar", "Apr", "May", "Jun"),
    *("Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
)


async def respond(path: str, request: Request) -> Response:
    """The answer to a request for a file. Raises HttpError."""
    conditional = any(request.header(name) is not None for name in _CONDITIONS)
    accepted = request.header("accept-encoding")
    encoding = choose_encoding(accepted, identity_only=conditional)
    opened = await in_thread(_open, path)
    level = _packing(opened, accepted) if encoding == "gzip" else None
    if level is not None:
        stream = _Stream(opened.fd, opened.head, level)
        return Response(200, [*opened.headers(), ("content-encoding", "gzip")], stream)
    if opened.size is None:
        return Response(200, opened.headers(), _Stream(opened.fd, opened.head))
    body: object = None
    try:
        response = _select(request, opened, opened.size)
        body = response.body
        return response
    finally:
        if not isinstance(body, FileRange):
            os.close(opened.fd)


@dataclass(frozen=True, slots=True)
class _Opened:
    fd: int
    name: str
    head: bytes
    size: int | None
    """None: read until the end."""
    mtime_ns: int
    inode: int

    def headers(self) -> list[tuple[str, str]]:
        headers = [
            ("vary", "Accept-Encoding"),
            ("content-disposition", content_disposition(self.name)),
            ("content-type", guess(self.name, self.head)),
        ]
        if self.size is not None:
            headers.append(("last-modified", http_date(self.modified_s)))
        return headers

    @property
    def etag(self) -> str:
        return f'"{self.inode:x}-{self.size or 0:x}-{self.mtime_ns:x}"'

    @property
    def modified_s(self) -> int:
        return self.mtime_ns // 1_000_000_000


class _Stream:
    """What is left of an open file as a response body. Owns the descriptor."""

    def __init__(self, fd: int, head: bytes, level: int | None = None) -> None:
        """`head` has been read from the file already; `level` None: not gzipped."""
        self._fd: int | None = fd
        self._head = head
        self._packer = None if level is None else zlib.compressobj(level, wbits=_GZIP_FORMAT)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = b"" if self._fd is None else await in_thread(self._next, self._fd)
        if not piece:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """Also when iteration never began; a generator would forget its descriptor then."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    def _next(self, fd: int) -> bytes:
        output = bytearray()
        while len(output) < _CHUNK_BYTES:
            piece, self._head = self._head or os.read(fd, _CHUNK_BYTES), b""
            if self._packer is None:
                return piece
            if not piece:
                output += self._packer.flush()
                self._fd = None
                os.close(fd)
                break
            output += self._packer.compress(piece)
        return bytes(output)


def _packing(opened: _Opened, accepted: str | None) -> int | None:
    """How to gzip the file for a client that takes it so; None: better not at all."""
    level = _FAST if _is_worth_packing(opened.head) else _STORED
    large = (opened.size or 0) > _PACKED_UNASKED_MAX_BYTES
    if accepts_identity(accepted) and (level == _STORED or (large and not _asks_to_pack(accepted))):
        return None
    return level


def _asks_to_pack(accepted: str | None) -> bool:
    """Whether gzip is named alone; a library's list of all it understands asks for nothing."""
    return _weights(accepted).keys() - {"identity", "*"} == {"gzip"}


def _is_worth_packing(head: bytes) -> bool:
    """Whether a file that begins like this becomes much smaller; a small one is packed anyway."""
    if len(head) < _HEAD_BYTES:
        return True
    return len(zlib.compress(head, _FAST)) < _WORTH_PACKING * len(head)


def choose_encoding(header: str | None, *, identity_only: bool) -> str:
    """`gzip` or `identity`, whichever the client prefers. Raises HttpError 406."""
    weights = _weights(header)
    rest = weights.get("*")
    identity = weights.get("identity", rest or 0.0)
    gzip = weights.get("gzip", (rest or 0.0) if weights.get("identity") == 0.0 else 0.0)
    if gzip > 0 and not identity_only and gzip >= identity:
        names = list(weights)
        rival = "identity" if "identity" in weights else "*"
        if gzip > identity or names.index("gzip") < names.index(rival):
            return "gzip"
    if accepts_identity(header):
        return "identity"
    raise HttpError(406, "no acceptable encoding found, supported: [identity, gzip]")


def accepts_identity(header: str | None) -> bool:
    """It is acceptable unless it is ruled out, by name or with everything unnamed."""
    weights = _weights(header)
    return weights.get("identity", weights.get("*", 1.0)) > 0


def content_disposition(name: str) -> str:
    """`inline` with the file's name (RFC 6266); bytes that are not UTF-8 stay as they are."""
    if _TOKEN.fullmatch(name):
        return f"inline; filename={name}"
    raw = os.fsencode(name)
    if raw.isascii() and raw.decode().isprintable():
        escaped = name.replace("\\", r"\\").replace('"', r"\"")
        return f'inline; filename="{escaped}"'
    return f"inline; filename*=utf-8''{quote(raw, safe='')}"


def http_date(time_s: int) -> str:
    """IMF-fixdate, whatever the locale."""
    try:
        moment = time.gmtime(time_s)
    except (OverflowError, ValueError, OSError):
        moment = time.gmtime(0)
    day, month = _DAYS[moment.tm_wday], _MONTHS[moment.tm_mon - 1]
    clock = f"{moment.tm_hour:02d}:{moment.tm_min:02d}:{moment.tm_sec:02d}"
    return f"{day}, {moment.tm_mday:02d} {month} {moment.tm_year:04d} {clock} GMT"


def parse_http_date(text: str) -> int | None:
    """Seconds of any of the three forms of RFC 9110 5.6.7; None if it is none of them."""
    from email.utils import parsedate_to_datetime  # rarely needed, and not small

    try:
        return int(parsedate_to_datetime(text).timestamp())
    except (ValueError, OverflowError):
        return None


def _open(path: str) -> _Opened:
    """Open a regular file. Others are refused before and after: opening a device may act."""
    try:
        _require_regular(os.stat(path), path)
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            _require_regular(found, path)
            head = os.read(fd, _HEAD_BYTES)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        if error.errno == errno.ENOTDIR:
            raise HttpError(404, f"path '{path}' does not exist") from error
        raise as_http(error, path, "opening") from error
    # /proc says 0 and /sys a whole page; neither is what comes out.
    trusted = len(head) == min(found.st_size, _HEAD_BYTES)
    return _Opened(
        fd=fd,
        name=os.path.basename(path),
        head=head,
        size=found.st_size if trusted else None,
        mtime_ns=found.st_mtime_ns,
        inode=found.st_ino,
    )


def _require_regular(found: os.stat_result, path: str) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise HttpError(400, f"path '{path}' is a directory")
    if not stat.S_ISREG(found.st_mode):
        raise HttpError(400, f"path '{path}' is not a regular file")


def _select(request: Request, opened: _Opened, size: int) -> Response:
    """All of the file, a part of it, or none of it, as the conditions say."""
    headers = [*opened.headers(), ("accept-ranges", "bytes"), ("etag", opened.etag)]
    status = _check_conditions(request, opened)
    if status is not None:
        if status == 304:
            kept = {"vary", "last-modified", "etag"}
            return Response(304, [header for header in headers if header[0] in kept])
        raise HttpError(status, f"the file is not as the request's conditions want: {opened.name}")
    header = request.header("range")
    if header is None or not _range_applies(request, opened):
        return Response(200, headers, FileRange(opened.fd, 0, size))
    wanted = _RANGE.fullmatch(header)
    # Several ranges or another unit: the whole file is a correct answer. So it is for an empty one.
    if wanted is None or wanted[1] == wanted[2] == "" or size == 0:
        return Response(200, headers, FileRange(opened.fd, 0, size))
    span = _resolve_range(wanted[1], wanted[2], size)
    if span is None:
        message = f"range '{header}' is outside the file's {size} bytes"
        return Response.json(
            {"code": 416, "message": message}, 416, [("content-range", f"bytes */{size}")]
        )
    first, last = span
    headers.append(("content-range", f"bytes {first}-{last}/{size}"))
    return Response(206, headers, FileRange(opened.fd, first, last - first + 1))


def _check_conditions(request: Request, opened: _Opened) -> int | None:
    """Evaluate preconditions in the order of RFC 9110 13.2.2; None: go on."""
    if (tags := request.header("if-match")) is not None:
        if not _names_tag(tags, opened.etag, weak=False):
            return 412
    elif (since := _date(request, "if-unmodified-since")) is not None and opened.modified_s > since:
        return 412
    if (tags := request.header("if-none-match")) is not None:
        return 304 if _names_tag(tags, opened.etag, weak=True) else None
    since = _date(request, "if-modified-since")
    return 304 if since is not None and opened.modified_s <= since else None


def _range_applies(request: Request, opened: _Opened) -> bool:
    validator = request.header("if-range")
    if validator is None:
        return True
    if validator.startswith(('"', "W/")):
        return validator == opened.etag
    return _date(request, "if-range") == opened.modified_s


def _resolve_range(first_text: str, last_text: str, size: int) -> tuple[int, int] | None:
    """First and last byte; None if the file has none of them."""
    first, last = _offset(first_text), _offset(last_text)
    if first is None:
        assert last is not None
        return (max(size - last, 0), size - 1) if last > 0 else None
    last = size - 1 if last is None else min(last, size - 1)
    return (first, last) if first <= last else None


def _offset(digits: str) -> int | None:
    """A number of any length: all beyond the end of any file mean the same."""
    if not digits:
        return None
    significant = digits.lstrip("0")
    return int(significant or "0") if len(significant) < 19 else 1 << 63


def _names_tag(header: str, etag: str, *, weak: bool) -> bool:
    tags = [tag.strip() for tag in header.split(",")]
    return "*" in tags or etag in tags or (weak and f"W/{etag}" in tags)


def _date(request: Request, name: str) -> int | None:
    text = request.header(name)
    return None if text is None else parse_http_date(text)


def _weights(header: str | None) -> dict[str, float]:
    """The codings of an Accept-Encoding header, in order."""
    weights: dict[str, float] = {}
    for offer in (header or "").split(","):
        name, _, parameters = offer.partition(";")
        if name.strip():
            name = name.strip().lower().removeprefix("x-")
            weights.setdefault(name, _weight(parameters))
    return weights


def _weight(parameters: str) -> float:
    """The q of a coding, 1 if there is none or it makes no sense."""
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            match = re.fullmatch(r"[01](\.\d{0,3})?", value.strip(), re.ASCII)
            return min(float(match[0]), 1.0) if match else 1.0
    return 1.0
