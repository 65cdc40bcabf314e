"""inotify(7) through libc: the kernel's own news about directories."""

import ctypes
import os
import struct
from dataclasses import dataclass
from enum import IntFlag


class Mask(IntFlag):
    MODIFY = 0x2
    ATTRIB = 0x4
    MOVED_FROM = 0x40
    MOVED_TO = 0x80
    CREATE = 0x100
    DELETE = 0x200
    DELETE_SELF = 0x400
    MOVE_SELF = 0x800
    UNMOUNT = 0x2000
    Q_OVERFLOW = 0x4000
    IGNORED = 0x8000
    ONLYDIR = 0x1000000
    DONT_FOLLOW = 0x2000000
    ISDIR = 0x40000000


@dataclass(frozen=True, slots=True)
class RawEvent:
    watch: int
    """Number that `add` gave."""
    mask: int
    cookie: int
    """The same for the two halves of a rename."""
    name: str
    """Child of the watched directory, or empty for the directory itself."""


_HEADER = struct.Struct("iIII")
# Room for one event of the longest name and for many of usual ones.
_READ_BYTES = 64 * 1024


class Inotify:
    """One inotify instance. Not thread-safe. Close it."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd: int = self._check(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def add(self, path: str, mask: int) -> int:
        """Watch a path; its number. The same directory has the same number."""
        return self._check(
            self._libc.inotify_add_watch(self.fd, os.fsencode(path), ctypes.c_uint32(mask)), path
        )

    def remove(self, watch: int) -> None:
        """Stop a watch; one that the kernel has ended already is fine."""
        self._libc.inotify_rm_watch(self.fd, watch)

    def read(self) -> list[RawEvent]:
        """Events the kernel holds ready, oldest first; empty if there are none."""
        try:
            buffer = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return []
        events: list[RawEvent] = []
        position = 0
        while position < len(buffer):
            watch, mask, cookie, length = _HEADER.unpack_from(buffer, position)
            position += _HEADER.size
            name = buffer[position : position + length].rstrip(b"\0")
            position += length
            events.append(RawEvent(watch, mask, cookie, os.fsdecode(name)))
        return events

    def close(self) -> None:
        os.close(self.fd)

    @staticmethod
    def _check(result: int, path: str | None = None) -> int:
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
        return result
