"""Daemons that the node keeps serving and that outlive it: the resolver, the gate.

    stopped --start--> serving --it dies--> stopped --run() starts it again--> serving

They are no children of ours: they go on serving running sandboxes while the node restarts, which
then adopts them by their pid files, or replaces one that was started with other arguments.
"""

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

import structlog

from alcove.node import pidfd
from alcove.node.run import detach

_log = structlog.get_logger()

_START_AGAIN_S = 1.0
_FORERUNNER_ENDS_WITHIN_S = 1.0


class Daemon:
    """Keeps one process serving that goes to the background by itself once it is ready."""

    def __init__(self, name: str, argv: list[str], pid_file: Path, program: str) -> None:
        """`argv` names the pid file and `program`, each in an argument of its own.

        By these two a process is known as ours, be it of another version or interpreter.
        """
        self._name = name
        self._program = program
        self._argv = argv
        self._pid_file = pid_file
        self._mark = pid_file_argument(pid_file)

    async def start(self) -> None:
        """Return once one with our arguments serves: adopted, replaced or started.

        Raises CommandError if it is missing or cannot bind its address.
        """
        pid = self._alive()
        if pid is not None and _command_line(pid) == self._argv:
            return
        await self.stop()
        self._pid_file.parent.mkdir(parents=True, exist_ok=True)
        await detach(self._argv)
        if (pid := self._alive()) is not None:
            await _reap_forerunner(pid)

    async def run(self) -> None:
        """Keep it serving, for ever. Cancelling leaves it as it is."""
        while True:
            try:
                await self.start()
                if (pid := self._alive()) is not None:
                    await _ended(pid)
                _log.warning("daemon.ended", name=self._name, pid=pid)
            except Exception:
                _log.exception("daemon.failed", name=self._name, again_in_s=_START_AGAIN_S)
            await asyncio.sleep(_START_AGAIN_S)

    async def stop(self) -> None:
        """End it at once, with its children: they hold its sockets."""
        # Again and again: one on its way into the background may slip from pid to pid.
        while pids := await asyncio.to_thread(self._processes):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                await _ended(pid)
        self._pid_file.unlink(missing_ok=True)

    def _alive(self) -> int | None:
        """The pid of the process that wrote our pid file; None if that number is anyone else's."""
        try:
            pid = int(self._pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return pid if self._is_ours(pid) else None

    def _processes(self) -> list[int]:
        numbers = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())
        return [pid for pid in numbers if self._is_ours(pid)]

    def _is_ours(self, pid: int) -> bool:
        command_line = _command_line(pid)
        return self._program in command_line and self._mark in command_line


def pid_file_argument(pid_file: Path) -> str:
    return f"--pid-file={pid_file}"


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").rstrip("\0").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


async def _ended(pid: int) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await pidfd.ended(fd)
        pidfd.reap(fd)
    finally:
        os.close(fd)


async def _reap_forerunner(pid: int) -> None:
    """On its way into the background it left a zombie, ours if this process is a subreaper.

    That one had opened the session, so its pid is the process group of the one that stayed.
    """
    with suppress(ProcessLookupError, TimeoutError):
        forerunner = os.getpgid(pid)
        if forerunner != pid:
            async with asyncio.timeout(_FORERUNNER_ENDS_WITHIN_S):
                await _ended(forerunner)
