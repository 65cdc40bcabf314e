"""Processes by file descriptor: wait for their end without polling, signal them without mistaking
a reused pid for them, and collect the exit status of exactly the ones we name.

Nothing here waits for "any child": under asyncio and uvloop the exit status of a subprocess belongs
to the loop, so only pids that were adopted (become_subreaper) are reaped, one by one.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import Iterable
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Make this process the parent of orphans below it, so that their zombies can be reaped."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def start_time(pid: int) -> int | None:
    """Clock ticks after boot at which a process started; None if it is gone or a zombie.

    A pid together with its start time names one process for ever.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()  # a name may be any bytes
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in {b"Z", b"X"} else int(fields[19])


async def ended(pidfd: int) -> None:
    """Return once the process of a pidfd has ended."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_reader(pidfd, over.set)
    try:
        await over.wait()
    finally:
        loop.remove_reader(pidfd)


def reap(pidfd: int) -> str | None:
    """Collect an ended child: "exit 0", "signal 9"; None if it is not ours or not over."""
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None
    if result is None:
        return None
    kind = "exit" if result.si_code == os.CLD_EXITED else "signal"
    return f"{kind} {result.si_status}"


def open_all(pids: Iterable[int]) -> dict[int, int]:
    """A pidfd for each pid that still exists. The caller closes them."""
    opened = {}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            opened[pid] = os.pidfd_open(pid)
    return opened


def kill(pidfd: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
