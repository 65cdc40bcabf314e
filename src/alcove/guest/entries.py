"""What the API says of one file: EntryInfo (contract e2b 3.7), owners' names and metadata."""

import errno
import functools
import os
import stat
import time
from typing import Any

from alcove.wire.filesystem import METADATA_XATTR_PREFIX, FileType

_MAX_METADATA_BYTES = 64 * 1024
_PASSWD, _GROUP = "/etc/passwd", "/etc/group"

# Order and letters of Go's os.FileMode, which clients show as they are.
_SPECIAL_BITS = ((stat.S_ISUID, "u"), (stat.S_ISGID, "g"))
_KIND_LETTERS = {
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "L",
    stat.S_IFBLK: "D",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "S",
    stat.S_IFCHR: "D",
}
_TYPES = {stat.S_IFREG: FileType.FILE, stat.S_IFDIR: FileType.DIRECTORY}


class Owners:
    """Names of user and group ids, read once; make one per operation.

    Read here and not through libc, as in users.py.
    """

    def __init__(self) -> None:
        self._users: dict[int, str] | None = None
        self._groups: dict[int, str] | None = None

    def user(self, uid: int) -> str:
        if self._users is None:
            self._users = _names(_PASSWD)
        return self._users.get(uid, str(uid))

    def group(self, gid: int) -> str:
        if self._groups is None:
            self._groups = _names(_GROUP)
        return self._groups.get(gid, str(gid))


def describe(path: str, owners: Owners, found: os.stat_result | None = None) -> dict[str, Any]:
    """EntryInfo of what is at `path`, in proto3 JSON shape. Raises OSError.

    Of a symlink, `type`, `mode` and metadata are its target's and all else is its own. `found`
    saves the lstat if the caller has it.
    """
    own = os.lstat(path) if found is None else found
    entry: dict[str, Any] = {
        "name": presentable(os.path.basename(path.rstrip("/")) or "/"),
        "path": presentable(path),
        "size": str(own.st_size),
        "permissions": permissions(own.st_mode),
        "owner": presentable(owners.user(own.st_uid)),
        "group": presentable(owners.group(own.st_gid)),
        "modifiedTime": rfc3339(own.st_mtime_ns),
    }
    target: os.stat_result | None = own
    if stat.S_ISLNK(own.st_mode):
        entry["symlinkTarget"], target = _follow(path)
    entry["type"] = FileType.UNSPECIFIED.value
    entry["mode"] = 0
    if target is not None:
        entry["type"] = _TYPES.get(stat.S_IFMT(target.st_mode), FileType.UNSPECIFIED).value
        entry["mode"] = target.st_mode & 0o777
        metadata = read_metadata(path)
        if metadata:
            entry["metadata"] = metadata
    return entry


@functools.lru_cache(maxsize=256)
def permissions(mode: int) -> str:
    """A mode as Go writes it: `drwxr-xr-x`, `Lrwxrwxrwx`, `urwxr-xr-x`, `dtrwxrwxrwx`."""
    letters = _KIND_LETTERS.get(stat.S_IFMT(mode), "")
    letters += "".join(letter for bit, letter in _SPECIAL_BITS if mode & bit)
    if stat.S_ISCHR(mode):
        letters += "c"
    if mode & stat.S_ISVTX:
        letters += "t"
    bits = "".join(
        letter if mode & (0o400 >> index) else "-" for index, letter in enumerate("rwxrwxrwx")
    )
    return (letters or "-") + bits


def rfc3339(time_ns: int) -> str:
    """UTC, with as many digits of the second as proto3 JSON wants: none, 3, 6 or 9."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    try:
        moment = time.gmtime(seconds)
    except (OverflowError, ValueError, OSError):
        moment, nanoseconds = time.gmtime(0), 0
    if not 1 <= moment.tm_year <= 9999:  # a file may claim any time; a timestamp may not
        moment, nanoseconds = time.gmtime(0), 0
    fraction = f"{nanoseconds:09d}"
    while fraction.endswith("000"):
        fraction = fraction[:-3]
    date = f"{moment.tm_year:04d}-{moment.tm_mon:02d}-{moment.tm_mday:02d}"
    clock = f"{moment.tm_hour:02d}:{moment.tm_min:02d}:{moment.tm_sec:02d}"
    return f"{date}T{clock}{'.' + fraction if fraction else ''}Z"


def presentable(name: str) -> str:
    """A name that JSON can carry: bytes that are not UTF-8 become U+FFFD."""
    if name.isascii():
        return name
    return os.fsencode(name).decode(errors="replace")


def read_metadata(path_or_fd: str | int) -> dict[str, str]:
    """User metadata of a file; none where the file system has no attributes."""
    try:
        names = os.listxattr(path_or_fd)
    except OSError:
        return {}
    metadata: dict[str, str] = {}
    total = 0
    for name in names:
        if not name.startswith(METADATA_XATTR_PREFIX):
            continue
        try:
            value = os.getxattr(path_or_fd, name)
        except OSError:
            continue  # removed meanwhile
        total += len(name) + len(value)
        if total > _MAX_METADATA_BYTES:
            break
        key = presentable(name.removeprefix(METADATA_XATTR_PREFIX))
        metadata[key] = value.decode(errors="replace")
    return metadata


def replace_metadata(fd: int, metadata: dict[str, str]) -> None:
    """Make `metadata` the whole set of an open file; silently none without attributes."""
    try:
        for name in os.listxattr(fd):
            key = name.removeprefix(METADATA_XATTR_PREFIX)
            if key != name and key not in metadata:
                os.removexattr(fd, name)
        for key, value in metadata.items():
            os.setxattr(fd, METADATA_XATTR_PREFIX + key, value.encode())
    except OSError as error:
        if error.errno not in {errno.ENOTSUP, errno.ENOSYS, errno.EPERM}:
            raise


def _follow(path: str) -> tuple[str, os.stat_result | None]:
    """The target of a symlink and what it is; the link's own path and None if it is broken."""
    try:
        target = os.path.realpath(path, strict=True)
        return presentable(target), os.stat(target)
    except OSError:
        return presentable(path), None


def _names(file: str) -> dict[int, str]:
    names: dict[int, str] = {}
    try:
        with open(file, encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                fields = line.split(":", 3)
                if len(fields) == 4 and fields[2].isdecimal():
                    names.setdefault(int(fields[2]), fields[0])
    except OSError:
        pass
    return names
