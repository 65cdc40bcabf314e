"""The way in: CONNECT {port}-{sandbox id} from the edge, then bytes both ways.

    HEAD ──good request──▶ DIALLING ──port answers──▶ OPEN ──both ends done──▶ CLOSED
      └── bad · late ──────────┴── refused · cut ───────┴── cut · broken ────────▲

Half-closes are passed on, a slow reader slows the writer on the other side, and when the sandbox
stops, its tunnels are cut. What is carried is not looked at.
"""

import asyncio
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

from alcove.concurrency import spawn
from alcove.node.drivers.driver import Driver, DriverError, PortClosedError
from alcove.node.guest_client import GuestError
from alcove.node.idleness import Idleness
from alcove.node.life import Life
from alcove.node.metrics import TunnelOutcome, tunnels_opened
from alcove.node.tunnels import Tunnels
from alcove.wire.errors import ErrorCode, Problem
from alcove.wire.hosts import GUEST_PORT, InvalidHostError, PortOfSandbox, parse_port_and_id
from alcove.wire.ids import SandboxId
from alcove.wire.tokens import same

_HEAD_MAX_BYTES = 8 * 1024
_HEAD_LIMIT_S = 10.0
_DIAL_S = 5.0
_FORWARD_S = 2.0
# A service that has just been started may not listen yet (contract e2b 3.8).
_REFUSED_PAUSES_S = (0.1, 0.2, 0.3, 0.4)
_BUFFER_BYTES = 256 * 1024
_OPENED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class _RefusedError(Exception):
    """The request cannot be served."""

    def __init__(self, outcome: TunnelOutcome, status: int, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.problem = Problem(status, message, _CODES.get(status, ErrorCode.INVALID_REQUEST))


_CODES = {
    401: ErrorCode.UNAUTHENTICATED,
    404: ErrorCode.NOT_FOUND,
    405: ErrorCode.METHOD_NOT_ALLOWED,
    429: ErrorCode.RATE_LIMITED,
    502: ErrorCode.NOT_FOUND,
}


@dataclass(frozen=True, slots=True)
class _Wanted:
    target: PortOfSandbox
    generation: int | None


class Ingress:
    """Serves tunnels into the running sandboxes of this node."""

    def __init__(
        self, driver: Driver, running: Callable[[SandboxId], Life | None], cluster_token: str
    ) -> None:
        self._driver = driver
        self._running = running
        self._authorization = f"Bearer {cluster_token}"
        self._server: asyncio.Server | None = None

    async def listen(self, host: str, port: int) -> int:
        """Begin to serve; the port, which may have been chosen by the kernel."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Client(self), host, port, backlog=1024, reuse_address=True
        )
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    def admit(self, head: bytes) -> tuple[Life, int]:
        """The running sandbox and port that a request head asks for. Raises _RefusedError."""
        wanted = _parse(head, self._authorization)
        life = self._running(wanted.target.sandbox_id)
        if life is None or wanted.generation not in {None, life.record.spec.generation}:
            raise _RefusedError(
                TunnelOutcome.NOT_HERE, 404, f"sandbox {wanted.target.sandbox_id} is not here"
            )
        return life, wanted.target.port

    async def dial(self, life: Life, port: int) -> socket.socket:
        """Connect to a port, helping services that listen on loopback only or not yet."""
        assert life.place is not None
        for pause_s in (*_REFUSED_PAUSES_S, None):
            try:
                return await self._driver.dial(life.place, port, _DIAL_S)
            except PortClosedError as error:
                if port == GUEST_PORT or pause_s is None:
                    raise _RefusedError(TunnelOutcome.PORT_CLOSED, 502, str(error)) from error
            except (DriverError, OSError) as error:
                raise _RefusedError(TunnelOutcome.NOT_HERE, 404, str(error)) from error
            if not await self._forwarded(life, port):
                await asyncio.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")

    async def _forwarded(self, life: Life, port: int) -> bool:
        try:
            return await life.guest().forward(port, _FORWARD_S)
        except (GuestError, DriverError):
            return False


class _Side(asyncio.Protocol):
    """One end of a tunnel: what it receives goes to its peer."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.peer: _Side | None = None
        self.idleness: Idleness | None = None
        self.finished = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=_BUFFER_BYTES)

    def data_received(self, data: bytes) -> None:
        if self.idleness is not None:
            self.idleness.touch()
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.write(data)

    def eof_received(self) -> bool:
        self.finished = True
        peer = self.peer
        if peer is None or peer.transport is None or peer.transport.is_closing():
            return False
        if peer.finished:
            # Both directions have ended: closing flushes what is still to be written.
            peer.transport.close()
            return False
        peer.transport.write_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        peer, self.peer = self.peer, None
        if peer is not None and peer.transport is not None:
            if exc is None and self.finished:
                peer.transport.close()
            else:
                peer.transport.abort()

    def pause_writing(self) -> None:
        transport = None if self.peer is None else self.peer.transport
        if transport is not None and transport.is_reading():
            transport.pause_reading()

    def resume_writing(self) -> None:
        transport = None if self.peer is None else self.peer.transport
        if transport is not None and not transport.is_closing() and not transport.is_reading():
            transport.resume_reading()


class _Client(_Side):
    """The edge's end: reads the request, then becomes one side of the tunnel."""

    def __init__(self, ingress: Ingress) -> None:
        super().__init__()
        self._ingress = ingress
        self._head: bytearray | None = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._tunnels: Tunnels | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        loop = asyncio.get_running_loop()
        late = _RefusedError(TunnelOutcome.BAD_REQUEST, 408, "the request did not arrive in time")
        self._timer = loop.call_later(_HEAD_LIMIT_S, self._refuse, late)

    def data_received(self, data: bytes) -> None:
        if self._head is None:
            super().data_received(data)
            return
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if (len(self._head) if end < 0 else end) > _HEAD_MAX_BYTES:
            self._refuse(
                _RefusedError(TunnelOutcome.BAD_REQUEST, 431, "the request head is too large")
            )
        elif end >= 0:
            head, early = bytes(self._head[:end]), bytes(self._head[end + 4 :])
            try:
                self._begin(*self._ingress.admit(head), early)
            except _RefusedError as refused:
                self._refuse(refused)

    def eof_received(self) -> bool:
        # An end of input before the tunnel is open leaves nobody to answer.
        return super().eof_received() if self.peer is not None else False

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        if self._dialling is not None:
            self._dialling.cancel()
        if self._tunnels is not None:
            self._tunnels.closed(self._cut)
        super().connection_lost(exc)

    def _begin(self, life: Life, port: int, early: bytes) -> None:
        assert self.transport is not None
        self._end_head()
        self._head = None
        if not life.tunnels.admit(self._cut):
            raise _RefusedError(
                TunnelOutcome.TOO_MANY, 429, "this sandbox has too many connections open"
            )
        self._tunnels = life.tunnels
        self.transport.pause_reading()
        if life.idleness is not None:
            life.idleness.touch()
        self._dialling = spawn(self._open(life, port, early), name=f"tunnel to port {port}")

    async def _open(self, life: Life, port: int, early: bytes) -> None:
        try:
            connection = await self._ingress.dial(life, port)
        except _RefusedError as refused:
            self._refuse(refused)
            return
        server = _Side()
        try:
            await _attach(server, connection)
        except OSError as error:
            connection.close()
            self._refuse(_RefusedError(TunnelOutcome.PORT_CLOSED, 502, str(error)))
            return
        self._dialling = None
        if self.transport is None or server.transport is None:
            for side in (self, server):
                if side.transport is not None:
                    side.transport.abort()
            return
        tunnels_opened.labels(TunnelOutcome.OPENED).inc()
        self.peer, server.peer = server, self
        self.idleness = server.idleness = life.idleness
        self.transport.write(_OPENED)
        if early:
            server.transport.write(early)
        self.transport.resume_reading()

    def _refuse(self, refused: _RefusedError) -> None:
        tunnels_opened.labels(refused.outcome).inc()
        self._end_head()
        self._head = None
        if self.transport is not None:
            self.transport.write(_answer(refused.problem))
            self.transport.close()

    def _cut(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _end_head(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def _attach(side: _Side, connection: socket.socket) -> None:
    """Let a protocol take over a connected socket."""
    loop = asyncio.get_running_loop()
    if connection.family == socket.AF_UNIX:
        await loop.create_unix_connection(lambda: side, sock=connection)
    else:
        await loop.create_connection(lambda: side, sock=connection)


def _parse(head: bytes, authorization: str) -> _Wanted:
    """Read `CONNECT {port}-{id} HTTP/1.1` and its headers. Raises _RefusedError."""
    request_line, *lines = head.decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    if not same(headers.get("authorization", ""), authorization):
        raise _RefusedError(TunnelOutcome.UNAUTHENTICATED, 401, "the cluster token is needed")
    method, _, rest = request_line.partition(" ")
    target, _, version = rest.partition(" ")
    if method != "CONNECT":
        raise _RefusedError(TunnelOutcome.BAD_REQUEST, 405, "only CONNECT is served here")
    port, _, sandbox_id = target.partition("-")
    generation = headers.get("x-alcove-generation")
    try:
        if not version.startswith("HTTP/1."):
            raise InvalidHostError("not HTTP/1")
        return _Wanted(
            parse_port_and_id(port, sandbox_id), None if generation is None else int(generation)
        )
    except ValueError as error:
        raise _RefusedError(
            TunnelOutcome.BAD_REQUEST, 400, f"CONNECT {{port}}-{{sandbox id}} is needed: {error}"
        ) from error


def _answer(problem: Problem) -> bytes:
    body = json.dumps(problem.body()).encode()
    phrase = HTTPStatus(problem.status).phrase
    return (
        f"HTTP/1.1 {problem.status} {phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode() + body
