"""A ZeroMQ socket as something to await, without a timer and without a thread.

A ZeroMQ socket's file descriptor tells that its state changed, not that there is a message, and it
tells it once: so the state is asked again after everything done to the socket.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import zmq


class Inbox:
    """`owner` is any kind of ZeroMQ socket.

    `idle` is called when there is nothing more to read, before waiting for more.
    """

    def __init__(self, owner: Any, idle: Callable[[], None] | None = None) -> None:
        self._owner = owner  # closes the socket when it is collected
        self.socket: zmq.Socket[bytes] = zmq.Socket.shadow(owner.underlying)
        self._idle = idle
        self._changed = asyncio.Event()
        self._finished = False
        self._descriptor = int(self.socket.getsockopt(zmq.FD))
        asyncio.get_running_loop().add_reader(self._descriptor, self.look)

    def look(self) -> None:
        """Ask for the socket's state anew; needed after every send."""
        # Reading EVENTS also makes the descriptor silent: else the loop would be called for ever.
        if int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._changed.set()

    async def receive(self) -> list[bytes] | None:
        """The frames of the next message; None when none follows."""
        while True:
            try:
                return self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                pass
            if self._finished:
                return None
            if self._idle is not None:
                self._idle()
            self._changed.clear()
            self.look()
            await self._changed.wait()

    def finish(self) -> None:
        """What has arrived may still be read, and nothing is waited for."""
        self._finished = True
        self._changed.set()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        self._owner.close(linger=0)
        self.finish()
