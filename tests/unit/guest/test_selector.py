"""An event that nothing can take away, and how the agent's loop gets rid of it."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from alcove.guest.selector import RenewableSelector

FEW = 60
"""A loop that spins looks thousands of times."""


def run(scene: Callable[[RenewableSelector], Awaitable[None]]) -> None:
    selector = RenewableSelector()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(_scene(scene, selector))


async def _scene(
    scene: Callable[[RenewableSelector], Awaitable[None]], selector: RenewableSelector
) -> None:
    await scene(selector)


async def looks(selector: RenewableSelector) -> int:
    """How often its loop looks for events while it has nothing to do."""
    look, counted = selector.select, 0

    def counting(timeout: float | None = None) -> Any:
        nonlocal counted
        counted += 1
        return look(timeout)

    selector.select = counting  # type: ignore[method-assign] # the loop's own way in
    try:
        await asyncio.sleep(0.5)
    finally:
        selector.select = look  # type: ignore[method-assign]
    return counted


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_an_event_of_a_file_that_is_gone_does_not_make_it_spin() -> None:
    async def scene(selector: RenewableSelector) -> None:
        ours, theirs = socket.socketpair()
        kept = os.dup(ours.fileno())
        # As after a restore: epoll knows a file that asyncio does not, and it is readable.
        selector._inner._selector.register(ours.fileno(), 1)  # type: ignore[attr-defined]
        theirs.send(b"x")
        ours.close()
        assert await looks(selector) < FEW
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


def test_a_file_closed_before_it_was_forgotten_does_not_make_it_spin() -> None:
    """Epoll keeps it while another descriptor has it; a new instance sees only the rest."""

    async def scene(selector: RenewableSelector) -> None:
        loop = asyncio.get_running_loop()
        reader, writer = os.pipe()
        ghost, read = os.dup(writer), asyncio.Event()
        loop.add_reader(reader, read.set)
        loop.add_writer(ghost, lambda: None)
        os.close(ghost)
        loop.remove_writer(ghost)
        assert await looks(selector) < FEW
        os.write(writer, b"x")
        await read.wait()
        loop.remove_reader(reader)
        os.close(reader)
        os.close(writer)

    run(scene)
