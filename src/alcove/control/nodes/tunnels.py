"""HTTP from control to a port of a sandbox, through its node's ingress as the edge goes (RFD 1).

The ingress answers CONNECT and from then on passes bytes (wire/node.py).
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpcore
from anyio.abc import SocketStream

from alcove.wire.hosts import PortOfSandbox

_CONNECT_TIMEOUT_S = 15.0
# A node that is saving the sandbox holds the request until it is done.
_ANSWER_TIMEOUT_S = 60.0
_MAX_HEAD_BYTES = 8 * 1024
_END_OF_HEAD = b"\r\n\r\n"


class TunnelError(Exception):
    """A port of a sandbox cannot be reached, or what was on its way is cut off.

    TunnelError
    └── TunnelRefusedError     by the ingress: `status` says why (wire/node.py)
    """


class TunnelRefusedError(TunnelError):
    def __init__(self, status: int) -> None:
        super().__init__(f"the ingress refused the tunnel with {status}")
        self.status = status


class Tunnels:
    """Opens them with the cluster's token."""

    def __init__(self, token: str) -> None:
        self._token = token

    @asynccontextmanager
    async def post(
        self,
        ingress: str,
        to: PortOfSandbox,
        generation: int,
        path: str,
        *,
        headers: dict[str, str],
        content: bytes,
    ) -> AsyncIterator[httpcore.Response]:
        """Send a POST on a connection of its own, which is closed with the block.

        `ingress` is "host:port". There is no time limit on the answer: the caller sets one. Raises
        TunnelError, also for what goes wrong while the block reads the answer.
        """
        backend = _Ingress(ingress, to, generation, self._token)
        async with httpcore.AsyncConnectionPool(network_backend=backend) as pool:
            try:
                async with pool.stream(
                    "POST",
                    f"http://localhost:{to.port}{path}",
                    headers=[(name.encode(), value.encode()) for name, value in headers.items()],
                    content=content,
                ) as response:
                    yield response
            except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
                raise TunnelError(str(error) or type(error).__name__) from error


class _Ingress(httpcore.AsyncNetworkBackend):
    """Whatever address is asked for, the connection goes to one port of one sandbox."""

    def __init__(self, ingress: str, to: PortOfSandbox, generation: int, token: str) -> None:
        self._host, _, self._port = ingress.rpartition(":")
        self._target = f"{to.port}-{to.sandbox_id}"
        self._generation = generation
        self._token = token

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        del host, port, timeout, local_address, socket_options
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                stream = await anyio.connect_tcp(self._host, int(self._port))
        except TimeoutError as error:
            raise TunnelError("the ingress does not accept connections") from error
        try:
            await self._connect(stream)
        except BaseException:
            await anyio.aclose_forcefully(stream)
            raise
        return _Stream(stream)

    async def _connect(self, stream: SocketStream) -> None:
        await stream.send(
            (
                f"CONNECT {self._target} HTTP/1.1\r\nHost: {self._target}\r\n"
                f"Authorization: Bearer {self._token}\r\n"
                f"X-Alcove-Generation: {self._generation}\r\n\r\n"
            ).encode()
        )
        head = b""
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                while _END_OF_HEAD not in head and len(head) < _MAX_HEAD_BYTES:
                    head += await stream.receive()
        except (TimeoutError, anyio.EndOfStream, anyio.BrokenResourceError) as error:
            raise TunnelError("the ingress does not answer") from error
        head, _, rest = head.partition(_END_OF_HEAD)
        words = head.split(b" ", 2)
        status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 502
        if status != 200 or rest:
            # What speaks before it is asked is no HTTP server.
            raise TunnelRefusedError(502 if status == 200 else status)


class _Stream(httpcore.AsyncNetworkStream):
    """Bytes to and from the sandbox; without time limits of its own."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        del timeout
        try:
            return await self._stream.receive(max_bytes)
        except anyio.EndOfStream:
            return b""
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise httpcore.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        del timeout
        try:
            await self._stream.send(buffer)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise httpcore.WriteError(str(error)) from error

    async def aclose(self) -> None:
        # With a reset or without: the sandbox's server sees the end and interrupts what runs.
        await anyio.aclose_forcefully(self._stream)
