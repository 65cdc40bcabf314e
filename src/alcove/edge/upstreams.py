"""From a target to a tunnel: the route, the wake, the pool, the dial and its refusals.

    find ──route──▶ admitted? ──▶ idle tunnel, or dial ──▶ ready
      │                ▲             └── the node knows no such life ──▶ find again
      └──paused──▶ admitted? ──▶ wake

Whether a request may enter is decided before a tunnel is taken or a sandbox woken (admission.py).
"""

import asyncio
import ssl
from typing import NamedTuple

import structlog

from alcove.concurrency import spawn
from alcove.edge import admission, metrics
from alcove.edge.admission import TRAFFIC_TOKEN_FIELD
from alcove.edge.catalog import Asleep, Catalog, Route
from alcove.edge.errors import (
    ControlUnreachableError,
    LifeEndedError,
    NoAnswerError,
    PortClosedError,
    RefusalError,
    SandboxNotFoundError,
    UnavailableError,
)
from alcove.edge.heads import RequestHead
from alcove.edge.pool import Key, Pool
from alcove.edge.replay import IDEMPOTENT
from alcove.edge.routing import Api
from alcove.edge.tunnel import NotHttpError, RefusedTunnelError, Tunnel, open_direct, open_tunnel
from alcove.edge.waking import Waker
from alcove.wire.hosts import GUEST_PORT, PortOfSandbox

_KEEP_GUEST_S = 620.0
# A server that handles one connection at a time is blocked by an idle one.
_KEEP_OTHERS_S = 15.0
# A request that must not run twice is not sent again when the server closed an idle tunnel just
# then. It only uses tunnels younger than any usual keep-alive limit of servers.
_KEEP_FOR_UNSAFE_S = 1.0
_log = structlog.get_logger()
_CONTROL_KEY = Key(None, 0, 0)
_PREPARED_AT_ONCE = 64
# A node daemon that restarts is back within this time; its sandboxes never noticed.
_DIAL_PAUSES_S = (0.05, 0.2, 0.5, 1.0)
# Control and a node disagree about a sandbox for moments only: while one tells the other.
_REFUTED_PAUSES_S = (0.05, 0.3)


class Ready(NamedTuple):
    tunnel: Tunnel
    key: Key
    masked_host: bytes | None
    withheld: frozenset[bytes] = frozenset()
    """Names of header fields that are for us and not for what runs inside."""


class Upstreams:
    def __init__(
        self,
        catalog: Catalog,
        waker: Waker,
        pool: Pool,
        control: tuple[str, int],
        cluster_token: str,
    ) -> None:
        self._catalog = catalog
        self._waker = waker
        self._pool = pool
        self._control = control
        self._token = cluster_token
        self._preparing: dict[Key, asyncio.Task[None]] = {}

    def take(self, to: PortOfSandbox | Api, head: RequestHead) -> Ready | None:
        """An idle tunnel, if there is one and nobody need be asked. Raises TrafficTokenError."""
        if isinstance(to, Api):
            tunnel = self._pool.take(_CONTROL_KEY, _max_idle_s(_CONTROL_KEY, head))
            return None if tunnel is None else Ready(tunnel, _CONTROL_KEY, None)
        route = self._catalog.fresh(to.sandbox_id)
        if route is None:
            return None
        admission.to_reach(route, to, head)
        return self._idle(route, to, head)

    async def open(
        self, to: PortOfSandbox | Api, head: RequestHead, *, fresh: bool = False
    ) -> Ready:
        """A tunnel, dialled if need be; `fresh`: in any case. Raises RefusalError.

        Wakes a paused sandbox if this request may.
        """
        if isinstance(to, Api):
            try:
                return Ready(await open_direct(self._control), _CONTROL_KEY, None)
            except OSError as error:
                raise ControlUnreachableError from error
        route = await self._locate(to, head)
        idle = None if fresh else await self._prepared(route, to, head)
        if idle is not None:
            return idle
        for pause_s in (*_REFUTED_PAUSES_S, None):
            try:
                return await self._dial(route, to, _server_name(route, to.port, head))
            except SandboxNotFoundError:
                # Paused, moved, or a new life of it began, since control was asked.
                self._catalog.refute(route)
                if pause_s is None:
                    raise
                newer = await self._locate(to, head)
                if newer == route:
                    await asyncio.sleep(pause_s)
                route = newer
        raise AssertionError

    def prepare(self, route: Route) -> None:
        """Have a tunnel to the agent in the pool, ahead of the first request."""
        key = Key(route.sandbox_id, route.generation, GUEST_PORT)
        if len(self._preparing) < _PREPARED_AT_ONCE and key not in self._preparing:
            name = f"tunnel to {route.sandbox_id}"
            self._preparing[key] = spawn(self._prepare(route, key), name=name)

    def give(self, ready: Ready) -> None:
        """Take back a tunnel whose exchange ended cleanly."""
        keep_s = _KEEP_GUEST_S if ready.key.port == GUEST_PORT else _KEEP_OTHERS_S
        self._pool.give(ready.key, ready.tunnel, keep_s)

    async def explain(self, to: PortOfSandbox | Api, key: Key) -> RefusalError:
        """Why the tunnel of `key` ended without an answer, as the client should read it."""
        if isinstance(to, Api):
            return ControlUnreachableError()
        self._catalog.expire(to.sandbox_id)
        try:
            found = await self._catalog.find(to.sandbox_id, patient=True)
        except RefusalError as refusal:
            return refusal
        if isinstance(found, Asleep) and not found.auto_resume:
            return SandboxNotFoundError(to.sandbox_id)
        if isinstance(found, Asleep) or found.generation != key.generation:
            return LifeEndedError(to.sandbox_id)
        return NoAnswerError(
            to.sandbox_id, "The sandbox is running but the port closed the connection unanswered"
        )

    async def _locate(self, to: PortOfSandbox, head: RequestHead) -> Route:
        """Where the sandbox runs, woken if it must and may be."""
        found = await self._catalog.find(to.sandbox_id)
        if isinstance(found, Asleep):
            admission.to_wake(found, to, head)
            found = await self._waker.wake(to.sandbox_id)
        admission.to_reach(found, to, head)
        return found

    async def _prepare(self, route: Route, key: Key) -> None:
        try:
            agent = PortOfSandbox(route.sandbox_id, key.port)
            self.give(await self._dial(route, agent, server_name=None))
        except RefusalError:
            pass  # whoever asks for it will be told
        finally:
            del self._preparing[key]

    async def _prepared(self, route: Route, to: PortOfSandbox, head: RequestHead) -> Ready | None:
        """An idle tunnel, be it one that is just being opened."""
        preparing = self._preparing.get(Key(to.sandbox_id, route.generation, to.port))
        if preparing is not None:
            await asyncio.wait([preparing])
        return self._idle(route, to, head)

    def _idle(self, route: Route, to: PortOfSandbox, head: RequestHead) -> Ready | None:
        key = Key(to.sandbox_id, route.generation, to.port)
        tunnel = self._pool.take(key, _max_idle_s(key, head))
        if tunnel is None:
            return None
        metrics.tunnels_reused.inc()
        return _ready(tunnel, key, route)

    async def _dial(self, route: Route, to: PortOfSandbox, server_name: str | None) -> Ready:
        """`server_name`: the port speaks TLS and is told this name; None: it does not."""
        for pause_s in (*_DIAL_PAUSES_S, None):
            try:
                tunnel = await open_tunnel(
                    route.node_ingress, to, route.generation, self._token, server_name
                )
            except RefusedTunnelError as error:
                raise _refusal(error.status, to) from error
            except TimeoutError as error:
                metrics.opened[metrics.Opened.UNREACHABLE].inc()
                raise NoAnswerError(
                    to.sandbox_id, "The sandbox is running but did not answer in time"
                ) from error
            except NotHttpError as error:
                raise NoAnswerError(
                    to.sandbox_id, "The port did not answer with valid HTTP/1.1"
                ) from error
            except ssl.SSLError as error:
                raise NoAnswerError(
                    to.sandbox_id, f"The port does not speak TLS: {error.reason or 'no handshake'}"
                ) from error
            except ConnectionError as error:
                metrics.opened[metrics.Opened.UNREACHABLE].inc()
                if pause_s is None:
                    _log.warning("node.not_reached", ingress=route.node_ingress, error=str(error))
                    raise _node_unreachable(to) from error
                await asyncio.sleep(pause_s)
            except OSError as error:
                metrics.opened[metrics.Opened.UNREACHABLE].inc()
                _log.warning("node.not_reached", ingress=route.node_ingress, error=str(error))
                raise _node_unreachable(to) from error
            else:
                metrics.opened[metrics.Opened.OPEN].inc()
                key = Key(to.sandbox_id, route.generation, to.port)
                return _ready(tunnel, key, route)
        raise AssertionError


def _server_name(route: Route, port: int, head: RequestHead) -> str | None:
    return head.host.partition(":")[0] if port in route.https_ports else None


def _ready(tunnel: Tunnel, key: Key, route: Route) -> Ready:
    private = route.traffic_token is not None and key.port != GUEST_PORT
    withheld = frozenset({TRAFFIC_TOKEN_FIELD}) if private else frozenset[bytes]()
    return Ready(tunnel, key, _masked_host(route, key.port), withheld)


def _masked_host(route: Route, port: int) -> bytes | None:
    if route.mask_request_host is None or port == GUEST_PORT:
        return None
    return route.mask_request_host.replace("${PORT}", str(port)).encode()


def _max_idle_s(key: Key, head: RequestHead) -> float:
    if key.port == GUEST_PORT or head.method in IDEMPOTENT:
        return _KEEP_GUEST_S
    return _KEEP_FOR_UNSAFE_S


def _refusal(status: int, to: PortOfSandbox) -> RefusalError:
    match status:
        case 404 | 409:
            metrics.opened[metrics.Opened.NOT_HERE].inc()
            return SandboxNotFoundError(to.sandbox_id)
        case 502:
            metrics.opened[metrics.Opened.PORT_CLOSED].inc()
            return PortClosedError(to.sandbox_id, to.port)
        case 429 | 503:
            metrics.opened[metrics.Opened.BUSY].inc()
            return UnavailableError(
                to.sandbox_id, "The sandbox has too many open connections, try again"
            )
        case 504:
            metrics.opened[metrics.Opened.UNREACHABLE].inc()
            return NoAnswerError(to.sandbox_id, "The sandbox is running but did not answer in time")
        case _:
            metrics.opened[metrics.Opened.UNREACHABLE].inc()
            _log.warning("tunnel.refused", sandbox_id=to.sandbox_id, status=status)
            return _node_unreachable(to)


def _node_unreachable(to: PortOfSandbox) -> RefusalError:
    return UnavailableError(to.sandbox_id, "The sandbox's node cannot be reached, try again")
