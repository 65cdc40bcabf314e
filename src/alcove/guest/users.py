"""Users of the image, and the paths they mean (contract e2b 3.2).

/etc/passwd and /etc/group are read here instead of through libc: the agent runs on its own libc,
which must not load the image's name-service modules.
"""

import os
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass

_USERS_FILE = "/etc/passwd"
_GROUPS_FILE = "/etc/group"


class UnknownUserError(LookupError):
    """The image has no user of this name; args[0] is the name."""


class InvalidPathError(ValueError):
    """The text cannot be a path; args[0] says why."""


@dataclass(frozen=True, slots=True)
class User:
    name: str
    uid: int
    gid: int
    home: str
    shell: str
    groups: tuple[int, ...]
    """All groups, the primary one first."""


# An image without /etc/passwd still has somebody to run as.
_ROOT = User("root", 0, 0, "/root", "/bin/sh", (0,))


def lookup(name: str) -> User:
    """Find a user by name. Raises UnknownUserError."""
    found = _table().get(name)
    if found is not None:
        return found
    if name == _ROOT.name:
        return _ROOT
    raise UnknownUserError(name)


def with_uid(uid: int) -> User | None:
    """The first user of this number."""
    found = next((user for user in _table().values() if user.uid == uid), None)
    return _ROOT if found is None and uid == _ROOT.uid else found


def group_ids(names: Iterable[str]) -> set[int]:
    """The numbers of the groups of these names."""
    wanted = set(names)
    return {
        int(entry[2])
        for entry in _lines(_GROUPS_FILE)
        if entry[0] in wanted and len(entry) == 4 and entry[2].isdecimal()
    }


def resolve_path(path: str, user: User, default_workdir: str | None) -> str:
    """The absolute path a client means. Raises InvalidPathError.

    Absolute paths stay verbatim: clients compare what is echoed with what they sent.
    """
    _refuse_unrepresentable(path)
    if not path:
        return default_workdir or user.home
    if path.startswith("/"):
        return path
    if path == "~" or path.startswith("~/"):
        return posixpath.normpath(user.home + path[1:])
    if path.startswith("~"):
        raise InvalidPathError(f"path '{path}' names another user's home; use an absolute path")
    return posixpath.normpath(posixpath.join(user.home, path))


def _refuse_unrepresentable(path: str) -> None:
    if "\0" in path:
        raise InvalidPathError("path contains a NUL byte")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise InvalidPathError("path is not valid Unicode") from error


_Stamp = tuple[tuple[int, int, int], tuple[int, int, int]]
_cached: tuple[_Stamp, dict[str, User]] | None = None


def _table() -> dict[str, User]:
    """All users, read again only when one of the two files has changed."""
    global _cached  # noqa: PLW0603 - one image per process
    stamp = (_stamp(_USERS_FILE), _stamp(_GROUPS_FILE))
    if _cached is None or _cached[0] != stamp:
        _cached = (stamp, _parse(_lines(_USERS_FILE), _lines(_GROUPS_FILE)))
    return _cached[1]


def _stamp(path: str) -> tuple[int, int, int]:
    try:
        stat = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return (stat.st_ino, stat.st_mtime_ns, stat.st_size)


def _lines(path: str) -> list[list[str]]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return [line.rstrip("\n").split(":") for line in file]
    except OSError:
        return []


def _parse(passwd: list[list[str]], group: list[list[str]]) -> dict[str, User]:
    member_of: dict[str, list[int]] = {}
    for entry in group:
        if len(entry) == 4 and entry[2].isdecimal():
            for member in filter(None, entry[3].split(",")):
                member_of.setdefault(member, []).append(int(entry[2]))
    users: dict[str, User] = {}
    for entry in passwd:
        if len(entry) != 7 or not (entry[2].isdecimal() and entry[3].isdecimal()):
            continue
        name, _, uid, gid, _, home, shell = entry
        groups = dict.fromkeys([int(gid), *member_of.get(name, [])])
        user = User(name, int(uid), int(gid), home or "/", shell or "/bin/sh", tuple(groups))
        users.setdefault(name, user)
    return users
