"""Processes named in files: pid and start time, as a pid alone may be somebody else's by now."""

import os
import select
import signal
from dataclasses import dataclass

from alcove.node.pidfd import start_time


@dataclass(frozen=True, slots=True)
class ProcessId:
    pid: int
    started_ticks: int
    """Start time in clock ticks since boot, /proc/<pid>/stat field 22."""


def identify(pid: int) -> ProcessId | None:
    """The process that has this pid now; None if there is none (a zombie counts as none)."""
    started_ticks = start_time(pid)
    return None if started_ticks is None else ProcessId(pid, started_ticks)


def is_alive(process: ProcessId) -> bool:
    return identify(process.pid) == process


def end(process: ProcessId, timeout_s: float) -> bool:
    """Ask a process to end, insist after `timeout_s`; True if it went by itself."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        if not is_alive(process):
            return True
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        if select.select([handle], [], [], timeout_s)[0]:
            return True
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        select.select([handle], [], [], 5)
    except ProcessLookupError:
        return True
    finally:
        os.close(handle)
    return False
