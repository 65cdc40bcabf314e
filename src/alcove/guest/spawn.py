"""Starting a child process: posix_spawn, so that nothing of the interpreter is copied.

A fork of the agent copies its page tables and makes both sides fault afterwards, which costs
milliseconds under gVisor. posix_spawn shares memory until exec; user, limits and working directory
are taken on by the agent for that moment and inherited.
"""

import errno
import functools
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from alcove.guest.identity import NotPermittedError, acting_as
from alcove.guest.users import User

# Python ignores some and exec would pass that on. All are named because libc asks for the handler
# of every signal that is not, which under gVisor takes as long as the rest of the call.
_RESET_SIGNALS = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
_OOM_SCORE = b"100"
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126
_NAME_MAX_BYTES = 255


class SpawnError(Exception):
    """The process could not be started; args[0] says why."""


@dataclass(frozen=True, slots=True)
class Stdio:
    """Descriptors of the child: a terminal, or three descriptors (stdin None: /dev/null).

    With a terminal, `stderr` may still be a descriptor of its own.
    """

    terminal: str | None = None
    stdin: int | None = None
    stdout: int = -1
    stderr: int = -1


@dataclass(frozen=True, slots=True)
class Launch:
    argv: list[str]
    env: dict[str, str]
    cwd: str | int
    """A path, or the descriptor of a directory, which `user` need not be able to enter."""
    user: User
    stdio: Stdio
    max_processes: int | None = None
    file: str | None = None
    """What to execute if it is not argv[0]."""


def launch(wanted: Launch) -> int:
    """Start a process and give its pid. Raises SpawnError.

    A command that cannot be executed is a process too, as in a shell: it says so on its stderr and
    exits with 127 or 126.
    """
    try:
        if isinstance(wanted.cwd, int):
            os.fchdir(wanted.cwd)
        try:
            with _preferred_for_oom(), acting_as(wanted.user, wanted.max_processes):
                if isinstance(wanted.cwd, str):
                    os.chdir(wanted.cwd)
                return _spawn(wanted)
        finally:
            os.chdir("/")
    except NotPermittedError as error:
        raise SpawnError(str(error)) from error
    except ValueError as error:  # NUL bytes and the like
        raise SpawnError(f"cannot start '{wanted.argv[0]}': {error}") from error
    except BlockingIOError as error:
        raise SpawnError(
            f"cannot start '{wanted.argv[0]}': {wanted.user.name} has too many processes"
            f" (limit {wanted.max_processes}); end some of them, as root if need be"
        ) from error
    except OSError as error:
        raise SpawnError(f"cannot start '{wanted.argv[0]}': {_reason(error, wanted)}") from error


def _spawn(wanted: Launch) -> int:
    try:
        path = wanted.file or find_program(wanted.argv[0], wanted.env.get("PATH", ""))
        return _posix_spawn(path, wanted.argv, wanted)
    except OSError as error:
        if error.errno == errno.ENOEXEC:  # a script without "#!"
            return _posix_spawn("/bin/sh", ["/bin/sh", path, *wanted.argv[1:]], wanted)
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            return _stillborn(wanted, "not found", _NOT_FOUND)
        if error.errno in {errno.EACCES, errno.EISDIR, errno.ELOOP}:
            return _stillborn(wanted, os.strerror(error.errno), _NOT_EXECUTABLE)
        raise


def _reason(error: OSError, wanted: Launch) -> str:
    # Of an argument that is too long gVisor says what Linux says of a file's name.
    short_name = len(os.fsencode(wanted.argv[0])) <= _NAME_MAX_BYTES
    if error.errno == errno.E2BIG or (error.errno == errno.ENAMETOOLONG and short_name):
        return (
            "the command line or environment is too long (one argument may have 128 KiB);"
            " write the text to a file, or to the command's stdin"
        )
    return error.strerror or str(error)


def _posix_spawn(path: str, argv: list[str], wanted: Launch) -> int:
    # Without a terminal each command leads its own process group, so that `kill 0` in it cannot
    # reach the agent.
    own_session = wanted.stdio.terminal is not None
    group: dict[str, Any] = {"setsid": True} if own_session else {"setpgroup": 0}
    return os.posix_spawn(
        path,
        argv,
        wanted.env,
        file_actions=_file_actions(wanted.stdio),
        setsigmask=[],
        setsigdef=_RESET_SIGNALS,
        **group,
    )


def _file_actions(stdio: Stdio) -> list[tuple[Any, ...]]:
    if stdio.terminal is not None:
        # Opened without O_NOCTTY by a session leader: this makes it the controlling terminal.
        return [
            (os.POSIX_SPAWN_OPEN, 0, stdio.terminal, os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            (os.POSIX_SPAWN_DUP2, max(stdio.stderr, 0), 2),
        ]
    return [
        (os.POSIX_SPAWN_DUP2, _null() if stdio.stdin is None else stdio.stdin, 0),
        (os.POSIX_SPAWN_DUP2, stdio.stdout, 1),
        (os.POSIX_SPAWN_DUP2, stdio.stderr, 2),
    ]


@functools.cache
def _null() -> int:
    """Opened once: commands start also when somebody has removed or replaced /dev/null."""
    return os.open(os.devnull, os.O_RDONLY)


def find_program(command: str, path: str) -> str:
    """The file execvp(3) would run. Raises FileNotFoundError or PermissionError."""
    if "/" in command:
        return command
    denied = False
    for directory in path.split(":"):
        candidate = os.path.join(directory or ".", command)
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):
            return candidate
        denied = denied or os.path.isfile(candidate)
    if denied:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), command)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command)


def _stillborn(wanted: Launch, reason: str, exit_code: int) -> int:
    """A process that only tells why it is not the wanted one."""
    message = f"{wanted.argv[0]}: {reason}\n".encode(errors="replace")
    pid = os.fork()
    if pid == 0:
        try:
            fd = wanted.stdio.stderr
            if wanted.stdio.terminal is not None:
                fd = os.open(wanted.stdio.terminal, os.O_RDWR | os.O_NOCTTY)
            os.write(fd, message)
        finally:
            os._exit(exit_code)
    return pid


@contextmanager
def _preferred_for_oom() -> Iterator[None]:
    """If the kernel must kill something, then a command rather than the agent.

    The score is inherited: setting our own for a moment leaves a command no time to have children
    without it, and takes fewer system calls.
    """
    score = _own_oom_score()
    if score is None:
        yield
        return
    fd, own = score
    os.pwrite(fd, _OOM_SCORE, 0)
    try:
        yield
    finally:
        os.pwrite(fd, own, 0)


@functools.cache
def _own_oom_score() -> tuple[int, bytes] | None:
    """The file that holds the agent's score, and the score; None if it shall not be changed."""
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_RDWR)
    except OSError:
        return None
    try:
        own = os.read(fd, 16).strip()
        if int(own) < int(_OOM_SCORE):
            os.pwrite(fd, own, 0)
            return fd, own
    except OSError:
        pass  # not available here
    os.close(fd)
    return None
