"""Processes of kernels: noticing their end without polling, and ending those nobody owns."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path


class Children:
    """Calls back when a child of this process has ended."""

    def __init__(self) -> None:
        self._watched: dict[Callable[[], int | None], Callable[[int], None]] = {}

    def listen(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.look)

    def close(self) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)

    def watch(self, poll: Callable[[], int | None], ended: Callable[[int], None]) -> None:
        """`poll` answers the exit code or None (Popen.poll); `ended` gets the code, once."""
        self._watched[poll] = ended
        # It may have ended before it was watched.
        asyncio.get_running_loop().call_soon(self.look)

    def look(self) -> None:
        """Call back for those that have ended by now."""
        for poll, ended in list(self._watched.items()):
            code = poll()
            if code is not None and self._watched.pop(poll, None) is not None:
                ended(code)


def signal_group(pid: int, number: int) -> None:
    """Send a signal to a kernel and what it runs in its process group; none left is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def end_orphans(run_dir: Path) -> int:
    """Kill kernels of a server that is gone: those started with a connection file in `run_dir`.

    Nothing has to have been written down for it, so no moment of a crash leaves one behind.
    Returns how many there were.
    """
    marker = f"{run_dir}/".encode()
    count = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            pid = int(entry.name)
            words = (entry / "cmdline").read_bytes().split(b"\0")
            # Kernels lead a session of their own: an editor of that file in a shell does not.
            if os.getsid(pid) == pid and any(word.startswith(marker) for word in words):
                count += 1
                signal_group(pid, signal.SIGKILL)
    return count
