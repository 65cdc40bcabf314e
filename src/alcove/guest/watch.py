"""A watcher: what changed below a directory, in the order it changed (contract e2b 3.7).

A Watcher turns inotify's events into a bounded buffer of changes. `drain` may run in any thread;
Watchers calls it whenever the kernel has news, and readers call it to be sure that everything done
before their call is in the buffer. Losses (a full buffer, a kernel queue overrun, too many
directories) are remembered and told once to the next reader: nothing is dropped in silence.
"""

import contextlib
import errno
import os
import secrets
import stat
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from alcove.guest.entries import Owners, describe, presentable
from alcove.guest.inotify import Inotify, Mask, RawEvent
from alcove.wire.filesystem import EventType

MAX_DIRECTORIES = 65_536
"""Watched by one recursive watcher."""
MAX_BUFFERED_CHANGES = 16_384
MAX_BUFFERED_ENTRIES = 4_096
"""The buffer of a watcher whose changes carry entries, which are far larger."""

# Their directories raise no events, and come and go with processes.
_SILENT = {"/proc", "/sys"}

# One read gives up to 64 KiB; this many empty a full kernel queue.
_MAX_READS = 128

_INTERESTING = (
    Mask.CREATE
    | Mask.MOVED_TO
    | Mask.MODIFY
    | Mask.ATTRIB
    | Mask.DELETE
    | Mask.DELETE_SELF
    | Mask.MOVED_FROM
    | Mask.MOVE_SELF
    | Mask.ONLYDIR
)
_TYPES = {
    Mask.CREATE: EventType.CREATE,
    Mask.MOVED_TO: EventType.CREATE,
    Mask.MODIFY: EventType.WRITE,
    Mask.ATTRIB: EventType.CHMOD,
    Mask.DELETE: EventType.REMOVE,
    Mask.DELETE_SELF: EventType.REMOVE,
    Mask.MOVED_FROM: EventType.RENAME,
    Mask.MOVE_SELF: EventType.RENAME,
}
_WITH_ENTRY = {EventType.CREATE, EventType.WRITE, EventType.CHMOD}
_ROOT = ""


class TooManyDirectoriesError(Exception):
    """The tree cannot be watched in full."""

    def __init__(self) -> None:
        super().__init__(
            f"more than {MAX_DIRECTORIES} directories (or the kernel's limit) would have to be"
            " watched; watch a smaller tree"
        )


class EventsLostError(Exception):
    """Some events could not be kept."""

    def __init__(self) -> None:
        super().__init__(
            "events were lost because they came faster than they were read;"
            " list the directory again, later events follow"
        )


class Watcher:
    """One watched directory. Blocking: make, drain and close it in a thread."""

    def __init__(
        self, root: str, *, recursive: bool, include_entry: bool, notify: Callable[[], None]
    ) -> None:
        """`notify` is called from any thread after a drain that found something."""
        self.id = f"w{secrets.token_hex(8)}"
        self._root = root
        self._recursive = recursive
        self._include_entry = include_entry
        self._notify = notify
        self._lock = threading.Lock()
        self._closed = False
        self._lost = False
        self._owners = Owners()
        self._changes: deque[dict[str, Any]] = deque(
            maxlen=MAX_BUFFERED_ENTRIES if include_entry else MAX_BUFFERED_CHANGES
        )
        # Watched directories, by the kernel's number and by path relative to the root.
        self._paths: dict[int, str] = {}
        self._watches: dict[str, int] = {}
        # Found by scanning a new directory; inotify may announce them once more.
        self._announced: set[str] = set()
        # First half of a directory's rename, whose second half may follow.
        self._moving: tuple[int, str] | None = None
        self._inotify = Inotify()
        try:
            self._remember(self._inotify.add(root, _INTERESTING), _ROOT)
            self._watch_below(_ROOT, announce=False)
        except OSError as error:
            self._inotify.close()
            if error.errno == errno.ENOSPC:
                raise TooManyDirectoriesError from error
            raise
        if self._lost:
            self._inotify.close()
            raise TooManyDirectoriesError

    @property
    def fd(self) -> int:
        """Readable when the kernel has news."""
        return self._inotify.fd

    def drain(self) -> None:
        """Take over everything that has happened until now."""
        with self._lock:
            if self._closed:
                return
            self._owners = Owners()  # accounts may have changed since
            for _ in range(_MAX_READS):
                events = self._inotify.read()
                if not events:
                    # Whatever the scans announced twice has now been read.
                    self._announced.clear()
                    break
                for event in events:
                    self._handle(event)
            self._end_move()
            news = bool(self._changes) or self._lost
        if news:
            self._notify()

    def take(self) -> list[dict[str, Any]]:
        """Empty the buffer: FilesystemEvents in proto3 JSON shape. Raises EventsLostError.

        Never waits: a drain, which may take long, may be adding to the buffer meanwhile.
        """
        if self._lost:
            self._lost = False
            raise EventsLostError
        return [self._changes.popleft() for _ in range(len(self._changes))]

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._inotify.close()

    def _handle(self, event: RawEvent) -> None:
        if event.mask & Mask.Q_OVERFLOW:
            self._lost = True
            self._watch_below(_ROOT, announce=False)  # directories may have come unseen
            return
        directory = self._paths.get(event.watch)
        if directory is None:
            return  # of a watch that we have given up
        if event.mask & (Mask.IGNORED | Mask.UNMOUNT):
            self._forget(directory)
        elif event.name:
            self._handle_child(event, f"{directory}/{event.name}" if directory else event.name)
        elif directory == _ROOT:
            # Of other directories their parent's watch tells.
            self._emit(".", _type_of(event))
            if event.mask & Mask.MOVE_SELF:
                self._give_up(_ROOT)

    def _handle_child(self, event: RawEvent, path: str) -> None:
        is_directory = bool(event.mask & Mask.ISDIR) and self._recursive
        moving = self._moving
        arrived = event.mask & Mask.MOVED_TO and moving and moving[0] == event.cookie
        if arrived:
            self._moving = None
        else:
            self._end_move()
        if event.mask & Mask.CREATE and path in self._announced:
            self._announced.discard(path)
            return
        if event.mask & (Mask.DELETE | Mask.MOVED_FROM):
            self._announced.discard(path)
        self._emit(path, _type_of(event))
        if not is_directory:
            return
        if event.mask & Mask.MOVED_FROM:
            self._moving = (event.cookie, path)
        elif event.mask & Mask.CREATE:
            self._watch_below(path, announce=True)
        elif arrived and moving and moving[1] in self._watches:
            self._rename(moving[1], path)
        elif event.mask & Mask.MOVED_TO:
            # What came from outside the tree came with its content; that is no news.
            self._watch_below(path, announce=bool(arrived))

    def _watch_below(self, top: str, *, announce: bool) -> None:
        """Watch a directory and, if recursive, all below it.

        The watch comes before the scan, so whatever appears in between is seen by at least one of
        them; `announce` tells what the scan finds.
        """
        pending = [top]
        while pending:
            directory = pending.pop()
            if directory != _ROOT and not self._watch(directory):
                continue
            if not self._recursive:
                return
            try:
                with os.scandir(os.path.join(self._root, directory)) as children:
                    for child in children:
                        path = f"{directory}/{child.name}" if directory else child.name
                        if announce:
                            self._announce(path, child)
                        if child.is_dir(follow_symlinks=False) and child.path not in _SILENT:
                            pending.append(path)
            except OSError:
                continue  # gone meanwhile, or longer than a path may be

    def _watch(self, directory: str) -> bool:
        if len(self._watches) >= MAX_DIRECTORIES:
            self._lost = True
            return False
        path = os.path.join(self._root, directory)
        try:
            watch = self._inotify.add(path, _INTERESTING | Mask.DONT_FOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            self._lost = True  # ENOSPC: the kernel's limit
            return False
        self._remember(watch, directory)
        return True

    def _announce(self, path: str, child: os.DirEntry[str]) -> None:
        self._announced.add(path)
        self._emit(path, EventType.CREATE)
        try:
            found = child.stat(follow_symlinks=False)
        except OSError:
            return
        if stat.S_ISREG(found.st_mode) and found.st_size:
            self._emit(path, EventType.WRITE)

    def _emit(self, path: str, kind: EventType) -> None:
        change: dict[str, Any] = {"name": presentable(path), "type": kind.value}
        if self._include_entry and kind in _WITH_ENTRY:
            full = self._root if path == "." else os.path.join(self._root, path)
            with contextlib.suppress(OSError):  # it may be gone again
                change["entry"] = describe(full, self._owners)
        if len(self._changes) == self._changes.maxlen:
            self._lost = True
        self._changes.append(change)

    def _remember(self, watch: int, directory: str) -> None:
        # A directory reached under a second path (it was moved) keeps its number.
        before = self._paths.get(watch)
        if before is not None:
            self._watches.pop(before, None)
        self._paths[watch] = directory
        self._watches[directory] = watch

    def _forget(self, directory: str) -> None:
        watch = self._watches.pop(directory, None)
        if watch is not None:
            self._paths.pop(watch, None)

    def _end_move(self) -> None:
        """A directory has left the tree: its second half did not follow."""
        if self._moving is not None:
            path, self._moving = self._moving[1], None
            self._give_up(path)

    def _give_up(self, top: str) -> None:
        for directory in self._below(top):
            self._inotify.remove(self._watches[directory])
            self._forget(directory)

    def _rename(self, before: str, after: str) -> None:
        for directory in self._below(before):
            watch = self._watches.pop(directory)
            self._remember(watch, after + directory[len(before) :])

    def _below(self, top: str) -> list[str]:
        prefix = f"{top}/" if top else ""
        return [path for path in self._watches if path == top or path.startswith(prefix)]


def _type_of(event: RawEvent) -> EventType:
    return next((kind for bit, kind in _TYPES.items() if event.mask & bit), EventType.UNSPECIFIED)
