"""Whole trees of files: make, copy, move, remove. Blocking: call through blocking.in_thread.

Trees are hostile: deeper than a path may be long or a stack deep, changed while we walk them, full
of links and special files. Nothing here recurses, and removal follows no link.
"""

import errno
import os
import secrets
import stat
from dataclasses import dataclass, field

_COPY_BYTES = 1024 * 1024
_MAX_RESCANS = 1000
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def make_directories(path: str, uid: int, gid: int) -> bool:
    """Create a directory and its missing parents, each 0755 and owned by the given user.

    Says whether any was missing. The process's umask must leave 0755 as it is. Raises OSError.
    """
    missing: list[str] = []
    current = path
    while True:
        try:
            found = os.stat(current)
        except FileNotFoundError:
            missing.append(current)
            current = os.path.dirname(current) or "."
            continue
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), current)
        break
    for directory in reversed(missing):
        try:
            os.mkdir(directory, 0o755)
        except FileExistsError:
            if not os.path.isdir(directory):
                raise
        else:
            os.chown(directory, uid, gid, follow_symlinks=False)
    return bool(missing)


def append_file(source_fd: int, target_fd: int) -> None:
    """Copy what is left to read of one open file to another, in the kernel where that works."""
    while True:
        try:
            sent = os.sendfile(target_fd, source_fd, None, _COPY_BYTES)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.ENOSYS}:
                raise
            break  # a file the kernel can only read(2), as those of /proc
        if not sent:
            return
    while piece := os.read(source_fd, _COPY_BYTES):
        write_all(target_fd, [piece])


def write_all(fd: int, pieces: list[bytes]) -> None:
    """Write pieces in order with as few calls as the kernel allows: watchers see each call."""
    rest: list[bytes | memoryview] = [piece for piece in pieces if piece]
    while rest:
        # IOV_MAX
        written = os.writev(fd, rest[:1024])
        while rest and written >= len(rest[0]):
            written -= len(rest.pop(0))
        if written:
            rest[0] = memoryview(rest[0])[written:]


def temporary_beside(path: str) -> str:
    """A fresh hidden name in the directory of `path`."""
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name[:40]}.{secrets.token_hex(8)}")


def move(source: str, destination: str) -> None:
    """Rename, or across file systems copy and remove. Raises OSError.

    A crash in between leaves the source whole.
    """
    try:
        os.rename(source, destination)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    else:
        return
    copy = temporary_beside(destination)
    try:
        _copy_tree(source, copy)
        os.rename(copy, destination)
    except BaseException:
        remove(copy)
        raise
    remove(source)


def _copy_tree(source: str, target: str) -> None:
    """Copy with owners, modes, times and attributes; hard links become files of their own."""
    pending = [(source, target)]
    copied: list[tuple[str, str, os.stat_result]] = []
    while pending:
        origin, copy = pending.pop()
        found = os.lstat(origin)
        kind = stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFDIR:
            os.mkdir(copy, 0o700)
            with os.scandir(origin) as children:
                pending += [(child.path, os.path.join(copy, child.name)) for child in children]
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(origin), copy)
        elif kind == stat.S_IFREG:
            _copy_content(origin, copy)
        else:
            os.mknod(copy, kind | 0o600, found.st_rdev)
        copied.append((origin, copy, found))
    # Children first: writing into a directory would change the times just set.
    for origin, copy, found in reversed(copied):
        _copy_attributes(origin, copy, found)


def _copy_content(origin: str, copy: str) -> None:
    source_fd = os.open(origin, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        target_fd = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            append_file(source_fd, target_fd)
        finally:
            os.close(target_fd)
    finally:
        os.close(source_fd)


def _copy_attributes(origin: str, copy: str, found: os.stat_result) -> None:
    os.chown(copy, found.st_uid, found.st_gid, follow_symlinks=False)
    try:
        for name in os.listxattr(origin, follow_symlinks=False):
            value = os.getxattr(origin, name, follow_symlinks=False)
            os.setxattr(copy, name, value, follow_symlinks=False)
    except OSError as error:
        if error.errno not in {errno.ENOTSUP, errno.ENOSYS, errno.EPERM, errno.ENODATA}:
            raise
    if not stat.S_ISLNK(found.st_mode):
        os.chmod(copy, stat.S_IMODE(found.st_mode))
    times = (found.st_atime_ns, found.st_mtime_ns)
    os.utime(copy, ns=times, follow_symlinks=False)


@dataclass(slots=True)
class _Level:
    """A directory being removed: its name, who it is, and what is left to do in it."""

    name: str
    identity: tuple[int, int]
    directories: list[str] = field(default_factory=list)
    rescans: int = 0


def remove(path: str) -> None:
    """Remove a file or a whole tree; nothing there is fine. Raises OSError.

    One descriptor and one short record per level: depth costs no stack and no descriptors.
    """
    parent, name = os.path.split(path.rstrip("/"))
    if name in {"", ".", ".."}:
        raise OSError(errno.EINVAL, "cannot remove this path", path)
    try:
        current = os.open(parent or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        if _unlink(name, current):
            return
        levels = [_Level("", _identity(os.fstat(current)), [name])]
        while len(levels) > 1 or levels[0].directories:
            level = levels[-1]
            if level.directories:
                child = level.directories.pop()
                opened = _open_directory(child, current)
                if opened is None:
                    continue  # it has gone, or became a file and was unlinked
                levels.append(_Level(child, _identity(os.fstat(opened)), _unlink_files(opened)))
            else:
                opened = _leave(level, levels[-2], current)
                if opened is None:
                    level.directories = _unlink_files(current)
                    continue
                levels.pop()
            os.close(current)
            current = opened
    finally:
        os.close(current)


def _leave(level: _Level, above: _Level, directory_fd: int) -> int | None:
    """Go up and remove the directory just emptied; None if somebody has filled it again."""
    upper = os.open("..", _DIRECTORY_FLAGS, dir_fd=directory_fd)
    if _identity(os.fstat(upper)) != above.identity:
        os.close(upper)
        raise OSError(errno.EBUSY, "moved while it was being removed", level.name)
    try:
        os.rmdir(level.name, dir_fd=upper)
    except FileNotFoundError:
        pass
    except OSError as error:
        os.close(upper)
        level.rescans += 1
        if error.errno != errno.ENOTEMPTY or level.rescans > _MAX_RESCANS:
            raise
        return None
    return upper


def _unlink(name: str, directory_fd: int) -> bool:
    """Unlink a name unless it is a directory; False if it is one."""
    try:
        os.unlink(name, dir_fd=directory_fd)
    except FileNotFoundError:
        return True
    except IsADirectoryError:
        return False
    return True


def _unlink_files(directory_fd: int) -> list[str]:
    """Unlink everything in an open directory but directories; their names."""
    with os.scandir(directory_fd) as children:
        return [
            child.name
            for child in children
            if child.is_dir(follow_symlinks=False) or not _unlink(child.name, directory_fd)
        ]


def _open_directory(name: str, directory_fd: int) -> int | None:
    """Open a directory to empty it; None if it has gone or was something else, then unlinked.

    gVisor follows a link in spite of O_NOFOLLOW when O_DIRECTORY is set, hence the comparison.
    """
    try:
        found = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode):
            _unlink(name, directory_fd)
            return None
        opened = os.open(name, _DIRECTORY_FLAGS, dir_fd=directory_fd)
    except FileNotFoundError:
        return None
    if _identity(os.fstat(opened)) != _identity(found):
        os.close(opened)
        raise OSError(errno.EBUSY, "replaced while it was being removed", name)
    return opened


def _identity(found: os.stat_result) -> tuple[int, int]:
    return (found.st_dev, found.st_ino)
