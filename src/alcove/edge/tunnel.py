"""One connection towards a sandbox's port (or to control), used for one exchange at a time.

    connecting ──CONNECT, 200──▶ busy ──release──▶ idle ──acquire──▶ busy
         │                        │                 │
         └──── refused · late ────┴── closed by either side ──▶ closed

The node's ingress answers CONNECT and from then on passes bytes (wire/node.py).
"""

import asyncio
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from alcove.edge.bodies import Piece
from alcove.edge.heads import END_OF_HEAD, MAX_HEAD_BYTES, BadResponseError, parse_response
from alcove.wire.hosts import PortOfSandbox

WRITE_HIGH_BYTES = 128 * 1024
_CONNECT_TIMEOUT_S = 15.0
# A node that is saving the sandbox holds the request until it is done.
_ANSWER_TIMEOUT_S = 60.0
_HANDSHAKE_TIMEOUT_S = 10.0
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
)


class RefusedTunnelError(Exception):
    """The ingress answered CONNECT with something other than 200: `status`."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the ingress refused the tunnel with {status}")
        self.status = status


class NotHttpError(Exception):
    """What listens on the port speaks before it is asked."""


class Receiver(Protocol):
    """Who holds a busy tunnel."""

    def upstream_data(self, data: bytes) -> None: ...
    def upstream_eof(self) -> bool:
        """The other side will send no more; True keeps our direction open."""
        ...

    def upstream_lost(self) -> None: ...
    def upstream_full(self, full: bool) -> None: ...


class Tunnel(asyncio.Protocol):
    def __init__(self) -> None:
        self.receiver: Receiver | None = None
        self.reused = False
        self.idle_since = 0.0
        self.closed = False
        self.on_idle_end: Callable[[Tunnel], None] | None = None
        """Set while idle: the tunnel ended, or spoke out of turn, and is of no more use."""
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._is_secure = False
        self._head = b""
        self._answer: asyncio.Future[int] | None = None

    async def connect(self, to: PortOfSandbox, generation: int, token: str) -> None:
        """Ask the ingress for the sandbox's port.

        Raises RefusedTunnelError, NotHttpError or OSError.
        """
        self._answer = asyncio.get_running_loop().create_future()
        name = f"{to.port}-{to.sandbox_id}"
        self.write(
            (
                f"CONNECT {name} HTTP/1.1\r\nHost: {name}\r\n"
                f"Authorization: Bearer {token}\r\nX-Alcove-Generation: {generation}\r\n\r\n"
            ).encode()
        )
        status = await self._answer
        self._answer = None
        if status != 200:
            raise RefusedTunnelError(status)

    async def secure(self, server_name: str) -> None:
        """Speak TLS with the port from now on; whoever it is, as plain ports are not asked either.

        Raises OSError (a failed handshake is one).
        """
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        secured = await loop.start_tls(
            self._transport,
            self,
            _trusting,
            server_hostname=server_name,
            ssl_handshake_timeout=_HANDSHAKE_TIMEOUT_S,
        )
        if secured is None or self.closed:
            raise ConnectionResetError("the port closed the connection")
        self._transport = secured
        self._is_secure = True

    def acquire(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.on_idle_end = None

    def release(self, on_idle_end: Callable[["Tunnel"], None]) -> None:
        self.receiver = None
        self.reused = True
        self.idle_since = time.monotonic()
        self.on_idle_end = on_idle_end
        self.pause(False)

    def write(self, data: Piece) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def write_all(self, pieces: Sequence[Piece]) -> None:
        if len(pieces) == 1:
            self.write(pieces[0])
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(pieces)

    def write_eof(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._is_secure:  # TLS connections close both ways at once
            self._transport.close()
        else:
            self._transport.write_eof()

    def pause(self, paused: bool) -> None:
        """Stop or go on reading."""
        if self._transport is None or paused is self._paused or self._transport.is_closing():
            return
        self._paused = paused
        if paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def close(self) -> None:
        self.receiver = None
        self.on_idle_end = None
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        self.receiver = None
        self.on_idle_end = None
        if self._transport is not None:
            reset(self._transport)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop has a class of its own
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        keep_alive(transport)

    def data_received(self, data: bytes) -> None:
        if self.receiver is not None:
            self.receiver.upstream_data(data)
        elif self._answer is not None and not self._answer.done():
            self._read_answer(self._answer, data)
        else:
            self._spoil()

    def eof_received(self) -> bool:
        if self.receiver is not None:
            return self.receiver.upstream_eof() and not self._is_secure
        self._spoil()
        return False

    def connection_lost(self, _exc: Exception | None) -> None:
        self.closed = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("the ingress closed the connection"))
        receiver, self.receiver = self.receiver, None
        if receiver is not None:
            receiver.upstream_lost()
        self._spoil()

    def pause_writing(self) -> None:
        if self.receiver is not None:
            self.receiver.upstream_full(True)

    def resume_writing(self) -> None:
        if self.receiver is not None:
            self.receiver.upstream_full(False)

    def _spoil(self) -> None:
        if self.on_idle_end is not None:
            on_idle_end, self.on_idle_end = self.on_idle_end, None
            on_idle_end(self)
        self.abort()

    def _read_answer(self, answer: asyncio.Future[int], data: bytes) -> None:
        self._head += data
        end = self._head.find(END_OF_HEAD)
        if end < 0 and len(self._head) <= MAX_HEAD_BYTES:
            return
        try:
            status = parse_response(self._head[: end + 2]).status
        except BadResponseError:
            status = 502
        if status == 200 and len(self._head) > end + len(END_OF_HEAD):
            answer.set_exception(NotHttpError("the port does not speak HTTP"))
            return
        self._head = b""
        answer.set_result(status)


def _trust_anyone() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


_trusting = _trust_anyone()


async def open_tunnel(
    ingress: tuple[str, int],
    to: PortOfSandbox,
    generation: int,
    token: str,
    server_name: str | None = None,
) -> Tunnel:
    """With a server name the port is spoken to in TLS.

    Raises RefusedTunnelError, NotHttpError, TimeoutError or OSError.
    """
    async with asyncio.timeout(_CONNECT_TIMEOUT_S):
        tunnel = await open_direct(ingress)
    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            await tunnel.connect(to, generation, token)
            if server_name is not None:
                await tunnel.secure(server_name)
    except BaseException:
        tunnel.abort()
        raise
    return tunnel


async def open_direct(address: tuple[str, int]) -> Tunnel:
    """A connection without CONNECT, to control. Raises OSError."""
    loop = asyncio.get_running_loop()
    _, tunnel = await loop.create_connection(Tunnel, *address)
    return tunnel


def keep_alive(transport: asyncio.Transport) -> None:
    """Let the kernel find out that a silent peer is gone; streams have no time limit."""
    connection = transport.get_extra_info("socket")
    for level, option, value in _KEEPALIVE:
        connection.setsockopt(level, option, value)


def reset(transport: asyncio.Transport) -> None:
    """Close with RST: nobody may take what was sent so far for the whole."""
    if not transport.is_closing():
        linger = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    transport.abort()
