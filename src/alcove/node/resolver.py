"""The resolver of sandboxes: one dnsmasq on the address that guests know as their gateway.

    stopped --start--> serving --it dies--> stopped --run() starts it again--> serving

It is no child of ours: it goes on serving running sandboxes while the node restarts, which then
adopts it by its pid file, or replaces it if it was started with other arguments.
"""

import asyncio
import os
import signal
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path

import structlog

from alcove.node import pidfd
from alcove.node.egress import REFUSED_NETWORKS
from alcove.node.run import run

_log = structlog.get_logger()

_CACHED_NAMES = 10_000
_QUERIES_IN_FLIGHT = 1_000
_TCP_CONNECTIONS = 200
_START_AGAIN_S = 1.0
_FORERUNNER_ENDS_WITHIN_S = 1.0


class Resolver:
    """Keeps one dnsmasq serving on `address`, with its files in `directory`."""

    def __init__(
        self, address: IPv4Address, directory: Path, upstream: Path = Path("/etc/resolv.conf")
    ) -> None:
        self._pid_file = directory / "resolver.pid"
        self._mark = f"--pid-file={self._pid_file}"
        self._argv = [
            "dnsmasq",
            "--conf-file=/dev/null",
            self._mark,
            "--user=nobody",
            "--group=nogroup",
            # A warning per odd query would let guests fill the disk.
            "--log-facility=/dev/null",
            "--bind-interfaces",
            f"--listen-address={address}",
            "--no-hosts",
            "--no-ident",
            f"--resolv-file={upstream}",
            "--domain-needed",
            "--bogus-priv",
            # Sandboxes have no IPv6: its addresses would only cost them failed connections.
            "--filter-AAAA",
            f"--cache-size={_CACHED_NAMES}",
            f"--dns-forward-max={_QUERIES_IN_FLIGHT}",
            f"--max-tcp-connections={_TCP_CONNECTIONS}",
            # Names that lead where no sandbox may go do not exist (DNS rebinding). The built-in
            # --stop-dns-rebind also hides the documentation networks, which some hosts use.
            *(f"--bogus-nxdomain={network}" for network in REFUSED_NETWORKS),
        ]

    async def start(self) -> None:
        """Return once a resolver with our arguments serves: adopted, replaced or started.

        Raises CommandError if dnsmasq is missing or cannot bind the address.
        """
        pid = self._alive()
        if pid is not None and _command_line(pid) == self._argv:
            return
        await self.stop()
        self._pid_file.parent.mkdir(parents=True, exist_ok=True)
        # It goes to the background by itself once it is ready to answer.
        await run(self._argv)
        if (pid := self._alive()) is not None:
            await _reap_forerunner(pid)

    async def run(self) -> None:
        """Keep it serving, for ever. Cancelling leaves it as it is."""
        while True:
            try:
                await self.start()
                if (pid := self._alive()) is not None:
                    await _ended(pid)
                _log.warning("resolver.ended", pid=pid)
            except Exception:
                _log.exception("resolver.failed", again_in_s=_START_AGAIN_S)
            await asyncio.sleep(_START_AGAIN_S)

    async def stop(self) -> None:
        """End it at once, with the children that serve TCP clients: they hold its sockets."""
        # Again and again: one on its way into the background may slip from pid to pid.
        while pids := await asyncio.to_thread(self._processes):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                await _ended(pid)
        self._pid_file.unlink(missing_ok=True)

    def _alive(self) -> int | None:
        """The pid of the dnsmasq that wrote our pid file; None if that number is anyone else's."""
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
        return command_line[:1] == self._argv[:1] and self._mark in command_line


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
