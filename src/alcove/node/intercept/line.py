"""The interceptor's end of a passage: what the gate hands over, who dials (gate/handover.py)."""

import asyncio
import base64
import json
import socket
from dataclasses import dataclass, field
from typing import Any

_FIRST_MAX_BYTES = 64 * 1024
_MESSAGE_MAX_BYTES = 4096
_DIAL_S = 30.0


class NotDialledError(OSError):
    """The gate could not, or would not, connect; the message says why."""


@dataclass(slots=True, eq=False)
class Line:
    """One passage, as the gate described it."""

    slot: int
    name: str
    port: int
    early: bytes
    """What the guest has said already."""
    _socket: socket.socket
    _asked: dict[int, "asyncio.Future[socket.socket]"] = field(default_factory=dict)
    _number: int = 0

    @classmethod
    async def accept(cls, connection: socket.socket) -> tuple["Line", socket.socket]:
        """The passage and the guest's end. Raises ValueError, OSError."""
        message, ends = await _receive(connection, _FIRST_MAX_BYTES)
        if len(ends) != 1:
            _close(ends)
            raise ValueError("a passage has one end")
        try:
            told = json.loads(message)
            early = base64.b64decode(told["early"], validate=True)
            line = cls(int(told["slot"]), str(told["name"]), int(told["port"]), early, connection)
        except (KeyError, TypeError, ValueError) as error:
            _close(ends)
            raise ValueError(f"not a passage: {error}") from error
        return line, ends[0]

    async def dial(self) -> socket.socket:
        """A connection to the passage's host. Raises NotDialledError."""
        self._number += 1
        number = self._number
        answer = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            self._socket.send(json.dumps({"dial": number}).encode())
            async with asyncio.timeout(_DIAL_S):
                connection: socket.socket = await answer
        except TimeoutError:
            raise NotDialledError(f"{self.name} did not answer in time") from None
        finally:
            del self._asked[number]
        return connection

    async def listen(self) -> None:
        """Until the gate ends the passage."""
        while True:
            try:
                message, ends = await _receive(self._socket, _MESSAGE_MAX_BYTES)
            except OSError:
                return
            if not message:
                return
            self._take(json.loads(message), ends)

    def close(self) -> None:
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(NotDialledError("the connection has ended"))
        self._socket.close()

    def _take(self, told: dict[str, Any], ends: list[socket.socket]) -> None:
        answer = self._asked.get(told.get("dialled", told.get("failed", 0)))
        if answer is None or answer.done():
            _close(ends)
        elif ends:
            answer.set_result(ends[0])
        else:
            answer.set_exception(NotDialledError(str(told.get("why", ""))))


async def _receive(connection: socket.socket, limit: int) -> tuple[bytes, list[socket.socket]]:
    """The next message with what came along; an empty one at the end."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            message, descriptors, _, _ = socket.recv_fds(connection, limit, 1)
        except BlockingIOError:
            readable: asyncio.Future[None] = loop.create_future()
            loop.add_reader(connection, readable.set_result, None)
            try:
                await readable
            finally:
                loop.remove_reader(connection)
            continue
        ends = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        for end in ends:
            end.setblocking(False)
        return message, ends


def _close(ends: list[socket.socket]) -> None:
    for end in ends:
        end.close()
