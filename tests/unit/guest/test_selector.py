"""An event that nothing can take away, and how the agent's loop gets rid of it."""

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from alcove.guest.selector import RenewableSelector


def run(scene: Callable[[RenewableSelector], Awaitable[None]]) -> None:
    selector = RenewableSelector()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(_scene(scene, selector))


async def _scene(
    scene: Callable[[RenewableSelector], Awaitable[None]], selector: RenewableSelector
) -> None:
    await scene(selector)


async def cpu_share() -> float:
    """Of a core that this process takes while its loop has nothing to do."""
    used, began = time.process_time(), time.monotonic()
    await asyncio.sleep(0.3)
    return (time.process_time() - used) / (time.monotonic() - began)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_an_event_of_a_file_that_is_gone_spins_until_renewed() -> None:
    async def scene(selector: RenewableSelector) -> None:
        ours, theirs = socket.socketpair()
        kept = os.dup(ours.fileno())
        # As after a restore: epoll knows a file that asyncio does not, and it is readable.
        selector._inner._selector.register(ours.fileno(), 1)  # type: ignore[attr-defined]
        theirs.send(b"x")
        ours.close()
        assert await cpu_share() > 0.5
        selector.renew()
        assert await cpu_share() < 0.2
        os.close(kept)
        theirs.close()

    run(scene)


def test_what_was_watched_is_watched_on() -> None:
    async def scene(selector: RenewableSelector) -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while line := await reader.readline():
                writer.write(line)
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        files = open_files()
        for number in range(50):
            writer.write(b"%d\n" % number)
            selector.renew()
            assert await reader.readline() == b"%d\n" % number
        assert open_files() == files
        writer.close()
        server.close()

    run(scene)
