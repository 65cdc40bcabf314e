"""The way in: CONNECT {port}-{sandbox id} from the edge, then bytes both ways (splice.py).

HEAD ──good request──▶ DIALLING ──port answers──▶ SPLICED ──▶ closed
  └── bad · late ──────────┴── refused · sandbox stops ──────▲

While a sandbox is saved, DIALLING waits (tunnels.py) and what is spliced is parted.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

import structlog

from alcove.concurrency import spawn
from alcove.node.drivers.driver import Driver, DriverError, PortClosedError
from alcove.node.guest_client import GuestError
from alcove.node.life import Life
from alcove.node.metrics import TunnelOutcome, tunnels_opened
from alcove.node.splice import Splice
from alcove.wire.errors import ErrorCode, Problem
from alcove.wire.hosts import GUEST_PORT, InvalidHostError, PortOfSandbox, parse_port_and_id
from alcove.wire.ids import SandboxId
from alcove.wire.tokens import same

_log = structlog.get_logger()

_BACKLOG = 1024
_ACCEPTED_AT_ONCE = 64
_ACCEPT_PAUSE_S = 0.1
_HEAD_MAX_BYTES = 8 * 1024
_HEAD_LIMIT_S = 10.0
_DIAL_S = 5.0
_FORWARD_S = 2.0
# A service that has just been started may not listen yet (contract e2b 3.8).
_REFUSED_PAUSES_S = (0.1, 0.2, 0.3, 0.4)
_OPENED = b"HTTP/1.1 200 Connection established\r\n\r\n"

_CODES = {
    401: ErrorCode.UNAUTHENTICATED,
    404: ErrorCode.NOT_FOUND,
    405: ErrorCode.METHOD_NOT_ALLOWED,
    429: ErrorCode.RATE_LIMITED,
    502: ErrorCode.NOT_FOUND,
}


class _RefusedError(Exception):
    """The request cannot be served."""

    def __init__(self, outcome: TunnelOutcome, status: int, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.problem = Problem(status, message, _CODES.get(status, ErrorCode.INVALID_REQUEST))


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
        self._listener: socket.socket | None = None

    def listen(self, host: str, port: int) -> int:
        """Begin to serve; the port, which the kernel has chosen if it was 0."""
        self._listener = socket.create_server((host, port), backlog=_BACKLOG)
        self._listener.setblocking(False)
        self._watch()
        return int(self._listener.getsockname()[1])

    def close(self) -> None:
        """Accept no more; tunnels stay until their sandboxes or this process end."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

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
            if not await _forwarded(life, port):
                await asyncio.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")

    def _watch(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        assert self._listener is not None
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                connection, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # Out of descriptors: those who wait are served when some are free again.
                _log.warning("ingress.accept_failed", error=str(error))
                loop = asyncio.get_running_loop()
                loop.remove_reader(self._listener)
                loop.call_later(_ACCEPT_PAUSE_S, self._watch)
                return
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _Arrival(self, connection)


class _Arrival:
    """A connection from the edge until it is spliced or refused."""

    def __init__(self, ingress: Ingress, connection: socket.socket) -> None:
        self._ingress = ingress
        self._connection = connection
        self._head = bytearray()
        self._cut: Callable[[], None] = self._drop
        self._part: Callable[[], None] = self._drop
        self._life: Life | None = None
        self.port = 0
        self.touched_at = 0.0
        self._dialling: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(connection, self._readable)
        self._timer = self._loop.call_later(_HEAD_LIMIT_S, self._late)

    def _readable(self) -> None:
        try:
            data = self._connection.recv(_HEAD_MAX_BYTES + 1 - len(self._head))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._drop()
            return
        self._head += data
        head, end, early = bytes(self._head).partition(b"\r\n\r\n")
        try:
            if end:
                self._begin(*self._ingress.admit(head), early)
            elif len(self._head) > _HEAD_MAX_BYTES:
                self._refuse(
                    _RefusedError(TunnelOutcome.BAD_REQUEST, 431, "the request head is too large")
                )
        except _RefusedError as refused:
            self._refuse(refused)

    def _late(self) -> None:
        self._refuse(
            _RefusedError(TunnelOutcome.BAD_REQUEST, 408, "the request did not arrive in time")
        )

    def _begin(self, life: Life, port: int, early: bytes) -> None:
        self._end_head()
        if not life.tunnels.admit(self):
            raise _RefusedError(
                TunnelOutcome.TOO_MANY, 429, "this sandbox has too many connections open"
            )
        self._life, self.port = life, port
        self._touch()
        self._dialling = spawn(self._open(life, port, early), name=f"tunnel to port {port}")

    async def _open(self, life: Life, port: int, early: bytes) -> None:
        try:
            inside = await self._dialled(life, port)
        except _RefusedError as refused:
            self._refuse(refused)
            return
        self._dialling = None
        tunnels_opened.labels(TunnelOutcome.OPENED).inc()
        try:
            # The first bytes on this connection: its send buffer is empty.
            self._connection.send(_OPENED)
        except OSError:
            inside.close()
            self._drop()
            return
        splice = Splice(self._connection, inside, touched=self._touch, ended=self._gone)
        self._cut, self._part = splice.cut, splice.part
        splice.start(early)

    async def _dialled(self, life: Life, port: int) -> socket.socket:
        inside = await life.tunnels.through(self, lambda: self._ingress.dial(life, port))
        if inside is None:
            sandbox_id = life.record.sandbox_id
            raise _RefusedError(
                TunnelOutcome.NOT_HERE, 404, f"sandbox {sandbox_id} stopped while it was dialled"
            )
        return inside

    def _touch(self) -> None:
        assert self._life is not None
        self.touched_at = self._loop.time()
        self._life.touch()

    def cut(self) -> None:
        """The sandbox stops."""
        self._cut()

    def part(self) -> None:
        """The sandbox is saved."""
        self._part()

    def _refuse(self, refused: _RefusedError) -> None:
        tunnels_opened.labels(refused.outcome).inc()
        with contextlib.suppress(OSError):
            self._connection.send(_answer(refused.problem))
        self._drop()

    def _drop(self) -> None:
        self._end_head()
        if self._dialling is not None and self._dialling is not asyncio.current_task():
            self._dialling.cancel()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
        self._connection.close()
        self._gone()

    def _gone(self) -> None:
        if self._life is not None:
            self._life.tunnels.closed(self)

    def _end_head(self) -> None:
        self._timer.cancel()
        self._loop.remove_reader(self._connection)


async def _forwarded(life: Life, port: int) -> bool:
    try:
        return await life.guest().forward(port, _FORWARD_S)
    except (GuestError, DriverError):
        return False


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
