"""Tells edges which sandboxes have begun to run, so that the first request need not ask.

And whose time was made shorter: the end of its time is part of a route.

News, not truth: who follows too slowly, or comes later, misses some, and asks as before.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from alcove.control.sandboxes.store import Sandbox

_MOST_WAITING = 1000


class Beginnings:
    """Of sandboxes whose life this process has begun, or brought nearer to its end."""

    def __init__(self) -> None:
        self._followers: set[asyncio.Queue[Sandbox]] = set()

    def tell(self, sandbox: Sandbox) -> None:
        """Call it after the commit."""
        for follower in self._followers:
            if not follower.full():
                follower.put_nowait(sandbox)

    @contextmanager
    def following(self) -> Iterator[asyncio.Queue[Sandbox]]:
        """What begins from now on."""
        follower: asyncio.Queue[Sandbox] = asyncio.Queue(_MOST_WAITING)
        self._followers.add(follower)
        try:
            yield follower
        finally:
            self._followers.discard(follower)
