"""The files of one volume, as the content API sees them. Blocking calls, for worker threads.

Whoever has the volume mounted may write links into it, and rename, at any moment, and this runs as
root of the host. So nothing is ever opened by a path of the host: all starts at a descriptor of the
volume's root, and openat2.py keeps it below. What is opened is looked at before it is used: pipes,
sockets and devices are refused.
"""

import os
import posixpath
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alcove.node.volumes import openat2
from alcove.node.volumes.errors import (
    ContentError,
    exists,
    explain,
    invalid,
    not_supported,
)

DEFAULT_ID = 9090
DIRECTORY_MODE, FILE_MODE = 0o777, 0o666
MAX_DEPTH = 10
_MAX_ENTRIES = 50_000
_MAX_PATH_BYTES = 4096
_MAX_ID = 2**32 - 2
_MAX_MODE = 0o7777
_MAX_SWEEPS = 1_000_000
_DIRECTORY = os.O_PATH | os.O_DIRECTORY
_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}


@dataclass(frozen=True, slots=True)
class Ownership:
    """Whose a new or changed entry is; None: as it is, or the default of the contract."""

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None

    def check(self) -> None:
        """Raises ContentError."""
        for name, value in (("uid", self.uid), ("gid", self.gid)):
            if value is not None and not 0 <= value <= _MAX_ID:
                raise invalid(f"{name} must be from 0 to {_MAX_ID}")
        if self.mode is not None and not 0 <= self.mode <= _MAX_MODE:
            raise invalid(f"mode must be from 0 to {_MAX_MODE} (0o7777)")


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that is being written and has no name yet."""

    fd: int
    directory: int
    path: str
    name: str
    force: bool


def clean(path: str) -> str:
    """The path from the volume's root, without `.`, `..` and doubled slashes."""
    if not path or "\0" in path:
        raise invalid("path must not be empty, nor contain NUL")
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError:
        raise invalid("path must be valid Unicode") from None
    if size > _MAX_PATH_BYTES:
        raise invalid(f"path must have at most {_MAX_PATH_BYTES} bytes")
    return posixpath.normpath("/" + path.lstrip("/"))


class Tree:
    """A volume's files, from its root down. Every call raises ContentError."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def stat(self, path: str) -> dict[str, Any]:
        path = clean(path)
        with self._parent(path) as (directory, name):
            return _shown(directory, name, path)

    def change(self, path: str, owner: Ownership) -> dict[str, Any]:
        path = clean(path)
        owner.check()
        with self._parent(path) as (directory, name):
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                _own(fd, owner)
            finally:
                os.close(fd)
            return _shown(directory, name, path)

    def remove(self, path: str) -> None:
        """Remove a file, or a directory with all in it; of a link the link."""
        path = clean(path)
        if path == "/":
            raise ContentError(400, "CANNOT_DELETE_ROOT", "the root of a volume cannot be deleted")
        with self._parent(path) as (directory, name):
            if stat.S_ISDIR(os.lstat(name, dir_fd=directory).st_mode):
                _remove_directory(directory, name)
            else:
                os.unlink(name, dir_fd=directory)

    def entries(self, path: str, depth: int) -> list[dict[str, Any]]:
        """What is in a directory, flat, each directory before what is in it."""
        path = clean(path)
        if not 1 <= depth <= MAX_DEPTH:
            raise ContentError(400, "DEPTH_OUT_OF_RANGE", f"depth must be from 1 to {MAX_DEPTH}")
        found: list[dict[str, Any]] = []
        with self._opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
            _list(fd, path, depth, found)
        return found

    def make_directory(self, path: str, owner: Ownership, *, force: bool) -> dict[str, Any]:
        path = clean(path)
        owner.check()
        if path == "/":
            if not force:
                raise exists(path)
            return self.stat(path)
        if force:
            self._make_parents(path, owner)
        with self._parent(path) as (directory, name):
            try:
                _make_directory(directory, name, owner)
            except FileExistsError:
                is_directory = stat.S_ISDIR(os.lstat(name, dir_fd=directory).st_mode)
                if not (force and is_directory):
                    raise
            return _shown(directory, name, path)

    @contextmanager
    def reading(self, path: str) -> Iterator[int]:
        """A descriptor of a regular file."""
        path = clean(path)
        with self._opened(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY) as fd:
            mode = os.fstat(fd).st_mode
            if stat.S_ISDIR(mode):
                raise invalid(f"'{path}' is a directory")
            if not stat.S_ISREG(mode):
                raise not_supported(f"'{path}' is not a regular file")
            yield fd

    @contextmanager
    def writing(self, path: str, owner: Ownership, *, force: bool) -> Iterator[Upload]:
        """A file to write to; keep() gives it its name, and without that nothing is left."""
        path = clean(path)
        owner.check()
        if path == "/":
            raise invalid("path must be that of a file")
        if force:
            self._make_parents(path, Ownership(owner.uid, owner.gid))
        with self._parent(path) as (directory, name):
            _check_free(directory, name, path, force=force)
            # Opened anew: a descriptor of O_PATH cannot be written to.
            fd = os.open(
                f"/proc/self/fd/{directory}", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600
            )
            try:
                _own(fd, _complete(owner, FILE_MODE))
                yield Upload(fd, directory, path, name, force)
            finally:
                os.close(fd)

    def keep(self, upload: Upload) -> dict[str, Any]:
        """Give a written file its name; one of that name is replaced in one step."""
        with _explained(upload.path):
            try:
                openat2.name_file(upload.fd, upload.directory, upload.name)
            except FileExistsError:
                if not upload.force:
                    raise
                _check_free(upload.directory, upload.name, upload.path, force=True)
                _replace(upload)
            return _shown(upload.directory, upload.name, upload.path)

    def _make_parents(self, path: str, owner: Ownership) -> None:
        parents = posixpath.dirname(path).strip("/").split("/")
        for count in range(1, len(parents) + 1):
            part = "/" + "/".join(parents[:count])
            if part == "/":
                continue
            with self._parent(part) as (directory, name), suppress(FileExistsError):
                _make_directory(directory, name, owner)

    @contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        """The directory that an entry is in, and its name there."""
        above, name = posixpath.split(path)
        with self._opened(above, _DIRECTORY) as fd, _explained(path):
            yield fd, name or "."

    @contextmanager
    def _opened(self, path: str, flags: int) -> Iterator[int]:
        with _explained(path):
            root = os.open(self._root, _DIRECTORY | os.O_CLOEXEC)
            try:
                fd = openat2.open_in(root, path, flags)
            finally:
                os.close(root)
            try:
                yield fd
            finally:
                os.close(fd)


@contextmanager
def _explained(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise explain(error, path) from error


def _shown(directory: int, name: str, path: str) -> dict[str, Any]:
    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    shown = _entry(found, path)
    if stat.S_ISLNK(found.st_mode):
        shown["target"] = _text(os.readlink(name, dir_fd=directory))
    return shown


def _entry(found: os.stat_result, path: str) -> dict[str, Any]:
    return {
        "name": _text(posixpath.basename(path) or "/"),
        "type": _KINDS.get(stat.S_IFMT(found.st_mode), "unknown"),
        "path": _text(path),
        "size": found.st_size,
        "mode": stat.S_IMODE(found.st_mode),
        "uid": found.st_uid,
        "gid": found.st_gid,
        "atime": _moment(found.st_atime_ns),
        "mtime": _moment(found.st_mtime_ns),
        "ctime": _moment(found.st_ctime_ns),
    }


def _text(name: str) -> str:
    """A guest may use bytes for names that are no text."""
    return os.fsencode(name).decode(errors="replace")


def _moment(at_ns: int) -> str:
    """RFC 3339; a guest may set times that no calendar has."""
    try:
        moment = datetime.fromtimestamp(at_ns / 1e9, UTC)
    except (OverflowError, OSError, ValueError):
        moment = datetime.fromtimestamp(0, UTC)
    return moment.isoformat().replace("+00:00", "Z")


def _list(fd: int, path: str, depth: int, found: list[dict[str, Any]]) -> None:
    for name in sorted(os.listdir(fd)):
        if len(found) >= _MAX_ENTRIES:
            raise not_supported(
                f"there are more than {_MAX_ENTRIES} entries: list a directory further down, or "
                "with less depth"
            )
        below = posixpath.join(path, name)
        try:
            found.append(_shown(fd, name, below))
            if depth > 1 and found[-1]["type"] == "directory":
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                child = os.open(name, flags, dir_fd=fd)
                try:
                    _list(child, below, depth - 1, found)
                finally:
                    os.close(child)
        except (FileNotFoundError, NotADirectoryError):
            continue  # somebody else is at work here


def _complete(owner: Ownership, mode: int) -> Ownership:
    return Ownership(
        DEFAULT_ID if owner.uid is None else owner.uid,
        DEFAULT_ID if owner.gid is None else owner.gid,
        mode if owner.mode is None else owner.mode,
    )


def _own(fd: int, owner: Ownership) -> None:
    """By the descriptor's entry in /proc, which is this very file and works for O_PATH too."""
    itself = f"/proc/self/fd/{fd}"
    if owner.uid is not None or owner.gid is not None:
        os.chown(
            itself,
            -1 if owner.uid is None else owner.uid,
            -1 if owner.gid is None else owner.gid,
        )
    if owner.mode is not None:  # after the owner: a change of that clears the set-user-ID bit
        os.chmod(itself, owner.mode)


def _make_directory(directory: int, name: str, owner: Ownership) -> None:
    os.mkdir(name, 0o700, dir_fd=directory)
    fd = os.open(name, _DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        _own(fd, _complete(owner, DIRECTORY_MODE))
    finally:
        os.close(fd)


def _check_free(directory: int, name: str, path: str, *, force: bool) -> None:
    """Refuse early what a file cannot be written over."""
    try:
        mode = os.lstat(name, dir_fd=directory).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise invalid(f"'{path}' is a directory")
    if not force:
        raise exists(path)


def _replace(upload: Upload) -> None:
    draft = f".{secrets.token_hex(8)}.upload"
    openat2.name_file(upload.fd, upload.directory, draft)
    try:
        os.rename(draft, upload.name, src_dir_fd=upload.directory, dst_dir_fd=upload.directory)
    except OSError:
        os.unlink(draft, dir_fd=upload.directory)
        raise


def _remove_directory(directory: int, name: str) -> None:
    """Remove a tree of any depth with two descriptors: what is deep is moved up first."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    top = os.open(name, flags, dir_fd=directory)
    try:
        for _ in range(_MAX_SWEEPS):
            names = os.listdir(top)
            if not names:
                break
            for entry in names:
                with suppress(FileNotFoundError):
                    _remove_entry(top, entry)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=directory)


def _remove_entry(top: int, entry: str) -> None:
    if not stat.S_ISDIR(os.lstat(entry, dir_fd=top).st_mode):
        os.unlink(entry, dir_fd=top)
        return
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    below = os.open(entry, flags, dir_fd=top)
    try:
        for name in os.listdir(below):
            with suppress(FileNotFoundError):
                if stat.S_ISDIR(os.lstat(name, dir_fd=below).st_mode):
                    os.rename(name, secrets.token_hex(16), src_dir_fd=below, dst_dir_fd=top)
                else:
                    os.unlink(name, dir_fd=below)
    finally:
        os.close(below)
    with suppress(OSError):  # not empty again: the next sweep sees it
        os.rmdir(entry, dir_fd=top)
