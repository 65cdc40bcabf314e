"""filesystem.Filesystem: look at files, arrange and watch them (contract e2b 3.7).

The agent acts as root; the caller's user decides what relative paths mean and who owns what is
made. Every file operation runs in a thread and takes a bounded number of entries.
"""

import contextlib
import errno
import os
import re
import stat
from collections.abc import AsyncGenerator
from typing import Any

from alcove.guest import trees
from alcove.guest.blocking import in_thread
from alcove.guest.entries import Owners, describe
from alcove.guest.refusals import as_connect, file_not_found
from alcove.guest.rpc import Call, Message, Rpc
from alcove.guest.users import InvalidPathError
from alcove.guest.watch import EventsLostError, TooManyDirectoriesError
from alcove.guest.watchers import TooManyWatchersError, Watchers
from alcove.wire import filesystem as wire
from alcove.wire.connect import ConnectError
from alcove.wire.errors import Code

MAX_LISTED = 100_000
"""Entries of one ListDir answer."""

_NETWORK_TYPE = re.compile(r"nfs\d?|cifs|smb\d?|smbfs|fuse(blk|ctl)?|fuse\..*")
_OCTAL = re.compile(r"\\([0-7]{3})")


def register(rpc: Rpc, watchers: Watchers) -> None:
    """Mount the methods of the service."""
    service = _Filesystem(watchers)
    rpc.unary(wire.STAT, service.stat)
    rpc.unary(wire.MAKE_DIR, service.make_dir)
    rpc.unary(wire.MOVE, service.move)
    rpc.unary(wire.LIST_DIR, service.list_dir)
    rpc.unary(wire.REMOVE, service.remove)
    rpc.server_stream(wire.WATCH_DIR, service.watch_dir)
    rpc.unary(wire.CREATE_WATCHER, service.create_watcher)
    rpc.unary(wire.GET_WATCHER_EVENTS, service.get_watcher_events)
    rpc.unary(wire.REMOVE_WATCHER, service.remove_watcher)


class _Filesystem:
    def __init__(self, watchers: Watchers) -> None:
        self._watchers = watchers

    async def stat(self, message: Message, call: Call) -> Message:
        path = _path(message, call)
        try:
            return {"entry": await in_thread(describe, path, Owners())}
        except NotADirectoryError as error:
            raise file_not_found(path) from error  # below a file there is nothing
        except OSError as error:
            raise as_connect(error, path) from error

    async def make_dir(self, message: Message, call: Call) -> Message:
        path = _path(message, call)
        user = call.user()
        return {"entry": await in_thread(self._make_dir, path, user.uid, user.gid)}

    async def move(self, message: Message, call: Call) -> Message:
        source = _path(message, call, "source")
        destination = _path(message, call, "destination")
        user = call.user()
        return {"entry": await in_thread(self._move, source, destination, user.uid, user.gid)}

    async def list_dir(self, message: Message, call: Call) -> Message:
        path = _path(message, call)
        try:
            return {"entries": await in_thread(_list, path, message.get("depth") or 1)}
        except NotADirectoryError as error:
            raise ConnectError(Code.INVALID_ARGUMENT, f"path is not a directory: {path}") from error
        except OSError as error:
            raise as_connect(error, path) from error

    async def remove(self, message: Message, call: Call) -> Message:
        path = _path(message, call)
        try:
            await in_thread(trees.remove, path)
        except OSError as error:
            raise as_connect(error, path) from error
        return {}

    async def watch_dir(self, message: Message, call: Call) -> AsyncGenerator[Message, None]:
        watcher_id = await self._open(message, call)
        try:
            yield {"start": {}}
            while True:
                changes = await self._watchers.wait(watcher_id, call.keepalive_s)
                for change in changes:
                    yield {"filesystem": change}
                if not changes:
                    yield {"keepalive": {}}
        except EventsLostError as error:
            raise ConnectError(Code.DATA_LOSS, str(error)) from error
        except KeyError:
            raise _no_watcher(watcher_id) from None  # the sandbox was rebooted
        finally:
            with contextlib.suppress(KeyError):
                await self._watchers.remove(watcher_id)

    async def create_watcher(self, message: Message, call: Call) -> Message:
        return {"watcherId": await self._open(message, call)}

    async def get_watcher_events(self, message: Message, call: Call) -> Message:
        call.user()
        watcher_id = message.get("watcherId", "")
        try:
            return {"events": await self._watchers.take(watcher_id)}
        except EventsLostError as error:
            raise ConnectError(Code.DATA_LOSS, str(error)) from error
        except KeyError:
            raise _no_watcher(watcher_id) from None

    async def remove_watcher(self, message: Message, call: Call) -> Message:
        call.user()
        watcher_id = message.get("watcherId", "")
        try:
            await self._watchers.remove(watcher_id)
        except KeyError:
            raise _no_watcher(watcher_id) from None
        return {}

    async def _open(self, message: Message, call: Call) -> str:
        path = _path(message, call)
        if not message.get("allowNetworkMounts", False):
            await in_thread(_refuse_network, path)
        try:
            return await self._watchers.open(
                path,
                recursive=message.get("recursive", False),
                include_entry=message.get("includeEntry", False),
            )
        except (TooManyWatchersError, TooManyDirectoriesError) as error:
            raise ConnectError(Code.RESOURCE_EXHAUSTED, str(error)) from error
        except NotADirectoryError as error:
            raise ConnectError(Code.INVALID_ARGUMENT, f"path is not a directory: {path}") from error
        except OSError as error:
            raise as_connect(error, path) from error

    def _make_dir(self, path: str, uid: int, gid: int) -> dict[str, Any]:
        try:
            try:
                found = os.stat(path)
            except FileNotFoundError:
                trees.make_directories(path, uid, gid)
            else:
                raise _exists(path, found)
            self._watchers.settle()
            return describe(path, Owners())
        except OSError as error:
            raise as_connect(error, path) from error

    def _move(self, source: str, destination: str, uid: int, gid: int) -> dict[str, Any]:
        try:
            os.lstat(source)
        except NotADirectoryError as error:
            raise file_not_found(source) from error
        except OSError as error:
            raise as_connect(error, source) from error
        try:
            parent = os.path.dirname(destination.rstrip("/")) or "/"
            trees.make_directories(parent, uid, gid)
            trees.move(source, destination)
            self._watchers.settle()
            return describe(destination, Owners())
        except OSError as error:
            raise as_connect(error, destination) from error


def _path(message: Message, call: Call, field: str = "path") -> str:
    try:
        return call.environment.resolve(message.get(field, ""), call.user())
    except InvalidPathError as error:
        raise ConnectError(Code.INVALID_ARGUMENT, str(error)) from error


def _list(root: str, depth: int) -> list[dict[str, Any]]:
    """Everything to `depth` levels below a directory: a parent, then its children, by name."""
    if not stat.S_ISDIR(os.stat(root).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), root)
    owners = Owners()
    entries: list[dict[str, Any]] = []
    children = _children(root.rstrip("/") or "/", MAX_LISTED)
    room = MAX_LISTED - len(children)
    levels = [iter(children)]
    while levels:
        child = next(levels[-1], None)
        if child is None:
            levels.pop()
            continue
        try:
            entries.append(describe(child.path, owners, child.stat(follow_symlinks=False)))
            if len(levels) < depth and child.is_dir(follow_symlinks=False):
                children = _children(child.path, room)
                room -= len(children)
                levels.append(iter(children))
        except OSError:
            continue  # removed while we look, or deeper than a path may be long
    return entries


def _children(directory: str, room: int) -> list[os.DirEntry[str]]:
    """A directory by name; refused as soon as it holds more than there is room for."""
    children: list[os.DirEntry[str]] = []
    with os.scandir(directory) as found:
        for child in found:
            if len(children) >= room:
                raise ConnectError(
                    Code.RESOURCE_EXHAUSTED,
                    f"more than {MAX_LISTED} entries; list a smaller directory or fewer levels",
                )
            children.append(child)
    children.sort(key=lambda child: os.fsencode(child.name))
    return children


def _refuse_network(path: str) -> None:
    """A remote machine's changes raise no events here, so watching would seem to work."""
    kind = _filesystem_type(os.path.realpath(path))
    if _NETWORK_TYPE.fullmatch(kind):
        raise ConnectError(
            Code.INVALID_ARGUMENT,
            f"cannot watch path on network filesystem: {path} ({kind});"
            " set allowNetworkMounts to watch changes made inside this sandbox",
        )


def _filesystem_type(path: str) -> str:
    """The type of the file system a path is on; later mounts hide earlier ones."""
    kind, longest = "", -1
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            fields = line.split(" ")
            if len(fields) < 3:
                continue
            point = _OCTAL.sub(lambda match: chr(int(match[1], 8)), fields[1]).rstrip("/")
            below = path == point or path.startswith(f"{point}/")
            if below and len(point) >= longest:
                kind, longest = fields[2], len(point)
    return kind


def _exists(path: str, found: os.stat_result) -> ConnectError:
    if stat.S_ISDIR(found.st_mode):
        return ConnectError(Code.ALREADY_EXISTS, f"directory already exists: {path}")
    return ConnectError(
        Code.INVALID_ARGUMENT, f"path already exists but it is not a directory: {path}"
    )


def _no_watcher(watcher_id: str) -> ConnectError:
    return ConnectError(Code.NOT_FOUND, f"watcher with id {watcher_id} not found")
