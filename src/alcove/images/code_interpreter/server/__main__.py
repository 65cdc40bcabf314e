"""python -m server uvicorn main:app [--host HOST] [--port PORT]

The two words say what this process stands for: tools and tests look for `uvicorn main:app`, the
command line of the original platform's server.
"""

import argparse
import asyncio
import logging
import signal
import socket
import sys
from pathlib import Path
from types import FrameType

import uvicorn

from .app import build_app
from .gathering import GatheringProtocol
from .settings import Settings

_KEEP_ALIVE_S = 640
"""Longer than any proxy keeps an idle connection (contract e2b 5.1)."""
_BACKLOG = 2048


class _QuietServer(uvicorn.Server):
    """uvicorn's, which waits for its end instead of looking for it ten times a second."""

    async def main_loop(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        await self.on_tick(0)
        if not self.should_exit:
            await self._end.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._loop.call_soon_threadsafe(self._end.set)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="server")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=49999)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    settings = Settings.read()
    config = uvicorn.Config(
        build_app(settings),
        loop="asyncio",
        http=GatheringProtocol,
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        date_header=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
    )
    with _listen(options.host, options.port) as outer, _listen_in(settings.socket) as inner:
        _QuietServer(config).run([outer, inner])
    return 0


def _listen(host: str, port: int) -> socket.socket:
    # By the protocol's number asyncio knows that small pieces must not wait for each other.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, port))
    listening.listen(_BACKLOG)
    return listening


def _listen_in(path: Path) -> socket.socket:
    """A unix socket for everybody in the sandbox, as the port is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    path.chmod(0o666)
    listening.listen(_BACKLOG)
    return listening


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
