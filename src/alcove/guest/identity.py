"""Being another user for the length of one system call or two.

Credentials belong to a thread in Linux. libc changes those of all threads, so the raw calls are
made here: worker threads that serve files stay root while the main thread starts a child.
"""

import ctypes
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

from alcove.guest.users import User

_ROOT_ID = 0
# Numbers of the calls: setgroups, setresgid, setresuid.
_CALLS = {"x86_64": (116, 119, 117), "aarch64": (159, 149, 147)}[os.uname().machine]

_libc = ctypes.CDLL(None, use_errno=True)


class NotPermittedError(Exception):
    """The agent itself does not run as root and cannot become this user."""


@contextmanager
def acting_as(user: User, max_processes: int | None = None) -> Iterator[None]:
    """What is started inside runs as `user`, with their groups and process limit.

    Must not be left to the event loop (no await inside): the whole main thread is `user`.
    """
    if os.geteuid() != _ROOT_ID:
        if user.uid != os.geteuid():
            raise NotPermittedError(f"the agent is not root and cannot run as '{user.name}'")
        yield
        return
    own_groups = os.getgroups()
    with _process_limit(None if user.uid == _ROOT_ID else max_processes):
        try:
            _become(user.uid, user.gid, list(user.groups))
            yield
        finally:
            _become_root(own_groups)


@contextmanager
def _process_limit(limit: int | None) -> Iterator[None]:
    """Children inherit the limit; root itself is not bound by it.

    The soft limit is enough against runaway forks, and giving it back needs no privilege.
    """
    if limit is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    lowered = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_NPROC, (lowered, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))


def _become(uid: int, gid: int, groups: list[int]) -> None:
    setgroups, setresgid, setresuid = _CALLS
    _call(setgroups, len(groups), (ctypes.c_uint32 * len(groups))(*groups))
    # The saved ids stay root's: they are the way back, and exec forgets them.
    _call(setresgid, gid, gid, _ROOT_ID)
    _call(setresuid, uid, uid, _ROOT_ID)


def _become_root(groups: list[int]) -> None:
    setgroups, setresgid, setresuid = _CALLS
    try:
        _call(setresuid, _ROOT_ID, _ROOT_ID, _ROOT_ID)
        _call(setresgid, _ROOT_ID, _ROOT_ID, _ROOT_ID)
        _call(setgroups, len(groups), (ctypes.c_uint32 * len(groups))(*groups))
    except OSError:
        # An agent that cannot get its rights back must not go on as somebody else.
        os.abort()


def _call(number: int, *args: object) -> None:
    if _libc.syscall(number, *args) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
