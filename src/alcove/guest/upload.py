"""One uploaded file on its way to disk (contract e2b 3.3).

    buffered ──1 MiB──▶ open ──end──▶ done
        └──────end───────┴──▶ done      failed: a file we created is removed, an old one stays cut

Watchers see what E2B's see: create, chown, write for a new file; chown, truncate, write for an old
one. So there is no temporary file and no rename, and a small upload is a single write.
"""

import errno
import os
import stat
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from alcove.guest import trees
from alcove.guest.blocking import in_thread
from alcove.guest.entries import presentable, replace_metadata
from alcove.guest.http import HttpError, Request
from alcove.guest.refusals import as_http
from alcove.guest.users import User
from alcove.wire.filesystem import METADATA_XATTR_PREFIX

_BATCH_BYTES = 1024 * 1024
_FILE_MODE = 0o644
_FLAGS = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_MAX_RACES = 8

_METADATA_HEADER = "x-metadata-"
_MAX_METADATA_KEY_BYTES = 255 - len(METADATA_XATTR_PREFIX)
_MAX_METADATA_BYTES = 4096

_UNPACKED_BYTES = 256 * 1024
_GZIP_FORMAT = 31


class Upload:
    """Writes one file. After `finish` or `abandon` it is over."""

    def __init__(
        self, path: str, owner: User, metadata: dict[str, str], settle: Callable[[], None]
    ) -> None:
        """`settle` is called, from a thread, when new directories have been made."""
        self._path = path
        self._owner = owner
        self._metadata = metadata
        self._settle = settle
        self._fd: int | None = None
        self._created: tuple[int, int] | None = None
        self._buffer: list[bytes] = []
        self._buffered = 0

    async def write(self, data: bytes) -> None:
        self._buffer.append(data)
        self._buffered += len(data)
        if self._buffered >= _BATCH_BYTES:
            await in_thread(self._guarded, self._flush)

    async def finish(self) -> dict[str, Any]:
        """Write the rest; what the API says of the file."""
        await in_thread(self._guarded, self._finish)
        info: dict[str, Any] = {
            "path": presentable(self._path),
            "name": presentable(os.path.basename(self._path)),
            "type": "file",
        }
        if self._metadata:
            info["metadata"] = self._metadata
        return info

    async def abandon(self) -> None:
        """The upload failed: remove the file if it is ours."""
        await in_thread(self._abandon)

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except OSError as error:
            if error.errno == errno.EISDIR:
                raise HttpError(400, f"path is a directory: {self._path}") from error
            raise as_http(error, self._path, "writing") from error

    def _flush(self) -> None:
        if self._fd is None:
            self._open()
        assert self._fd is not None
        pieces, self._buffer, self._buffered = self._buffer, [], 0
        trees.write_all(self._fd, pieces)

    def _finish(self) -> None:
        self._flush()
        assert self._fd is not None
        replace_metadata(self._fd, self._metadata)
        fd, self._fd = self._fd, None
        os.close(fd)

    def _open(self) -> None:
        if self._path.endswith("/"):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self._path)
        if trees.make_directories(os.path.dirname(self._path), self._owner.uid, self._owner.gid):
            self._settle()
        self._fd = self._create_or_open()
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode):
            raise HttpError(400, f"path '{self._path}' is not a regular file")
        os.fchown(self._fd, self._owner.uid, self._owner.gid)
        if self._created is None:
            os.ftruncate(self._fd, 0)
        elif stat.S_IMODE(found.st_mode) != _FILE_MODE:
            os.fchmod(self._fd, _FILE_MODE)  # the umask or an inherited ACL took bits away

    def _create_or_open(self) -> int:
        """Create the file, or open the one that is there; others may be doing the same."""
        for _ in range(_MAX_RACES):
            with suppress(FileExistsError):
                fd = os.open(self._path, _FLAGS | os.O_CREAT | os.O_EXCL, _FILE_MODE)
                self._created = _identity(os.fstat(fd))
                return fd
            with suppress(FileNotFoundError):
                return os.open(self._path, _FLAGS)
            if os.path.islink(self._path):
                # A link to a file that is not there yet: its target is made.
                return os.open(self._path, _FLAGS | os.O_CREAT, _FILE_MODE)
        raise OSError(errno.EBUSY, "it is created and removed again and again", self._path)

    def _abandon(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)
        if self._created is not None:
            with suppress(OSError):
                if _identity(os.lstat(self._path)) == self._created:
                    os.unlink(self._path)


def metadata_of(request: Request) -> dict[str, str]:
    """The X-Metadata-* headers; of a repeated one the first. Raises HttpError 400."""
    metadata: dict[str, str] = {}
    total = 0
    for name, value in request.headers:
        if not name.startswith(_METADATA_HEADER):
            continue
        key = name.removeprefix(_METADATA_HEADER).lower()
        if key in metadata:
            continue
        if not 0 < len(key) <= _MAX_METADATA_KEY_BYTES:
            raise HttpError(
                400, f"a metadata key must have 1 to {_MAX_METADATA_KEY_BYTES} bytes: '{key}'"
            )
        if not all(" " <= letter <= "~" for letter in key + value):
            raise HttpError(400, f"metadata '{key}' must be printable ASCII")
        total += len(METADATA_XATTR_PREFIX) + len(key) + len(value)
        metadata[key] = value
    if total > _MAX_METADATA_BYTES:
        raise HttpError(400, f"metadata of {total} bytes; at most {_MAX_METADATA_BYTES} are kept")
    return metadata


def decoded_body(request: Request) -> AsyncIterator[bytes]:
    """The request's body without its Content-Encoding. Raises HttpError 400."""
    encoding = (request.header("content-encoding") or "identity").strip().lower()
    if encoding == "identity":
        return request.body
    if encoding in {"gzip", "x-gzip"}:
        return _gunzip(request.body)
    raise HttpError(400, f"unsupported Content-Encoding '{encoding}', supported: [identity, gzip]")


async def _gunzip(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Unpack gzip of any number of members, in bounded pieces whatever the ratio."""
    unpacker = zlib.decompressobj(_GZIP_FORMAT)
    async for packed in body:
        rest = packed
        while True:
            if unpacker.eof:
                rest = rest.lstrip(b"\0")  # padding between members
                if not rest:
                    break
                unpacker = zlib.decompressobj(_GZIP_FORMAT)
            try:
                data = unpacker.decompress(rest, _UNPACKED_BYTES)
            except zlib.error as error:
                raise HttpError(400, f"the gzip body is malformed: {error}") from error
            if data:
                yield data
            rest = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
            # A full piece may have more behind it even when all input has been taken.
            if not rest and (unpacker.eof or len(data) < _UNPACKED_BYTES):
                break
    if not unpacker.eof:
        raise HttpError(400, "the gzip body ended too early")


def _identity(found: os.stat_result) -> tuple[int, int]:
    return (found.st_dev, found.st_ino)
