"""The edge in one piece: what all connections share, the listeners, the sweep and the end."""

import asyncio
import time
from typing import cast

from alcove._version import __version__
from alcove.edge import answers, metrics
from alcove.edge.catalog import Catalog
from alcove.edge.connection import Connection
from alcove.edge.control_client import ControlClient
from alcove.edge.errors import TooManyConnectionsError
from alcove.edge.following import Follower
from alcove.edge.http2 import PROTOCOL, Http2Connection
from alcove.edge.pool import Pool
from alcove.edge.routing import Router
from alcove.edge.upstreams import Upstreams
from alcove.edge.waking import Waker


class Edge:
    def __init__(
        self,
        router: Router,
        control: tuple[str, int],
        cluster_token: str,
        max_connections: int,
    ) -> None:
        self.router = router
        self.draining = False
        self.tls_port: int | None = None
        self._control_client = ControlClient(control, cluster_token)
        self._pool = Pool()
        catalog = Catalog(self._control_client)
        waker = Waker(self._control_client, catalog)
        self.upstreams = Upstreams(catalog, waker, self._pool, control, cluster_token)
        self.follower = Follower(self._control_client, catalog, self.upstreams)
        self._connections: set[Connection | Http2Connection] = set()
        self._max_connections = max_connections
        self._empty = asyncio.Event()
        self._empty.set()

    def accept(self) -> asyncio.Protocol:
        """Protocol factory of the plain listener."""
        return self._accept(tls=False)

    def accept_tls(self) -> asyncio.Protocol:
        """Of the listener with TLS: which version it is, the handshake says."""
        return self._accept(tls=True)

    @property
    def is_full(self) -> bool:
        return len(self._connections) >= self._max_connections

    def health(self) -> dict[str, object]:
        status = "draining" if self.draining else "ok"
        return {"status": status, "version": __version__, "tls_port": self.tls_port}

    def opened(self, connection: Connection | Http2Connection) -> None:
        self._connections.add(connection)
        self._empty.clear()
        metrics.connections.inc()

    def closed(self, connection: Connection | Http2Connection) -> None:
        self._connections.discard(connection)
        metrics.connections.dec()
        if not self._connections:
            self._empty.set()

    async def sweep(self) -> None:
        """End what waited too long; run every second or so."""
        now = time.monotonic()
        for connection in [each for each in self._connections if each.deadline < now]:
            connection.timed_out()
        self._pool.sweep(now)
        metrics.tunnels_idle.set(len(self._pool))

    async def drain(self, limit_s: float) -> None:
        """Let requests under way end, for at most `limit_s`; then cut them."""
        self.draining = True
        for connection in list(self._connections):
            if connection.is_idle:
                connection.close()
        try:
            async with asyncio.timeout(limit_s):
                await self._empty.wait()
        except TimeoutError:
            for connection in list(self._connections):
                connection.abort()
        self._pool.close()
        self._control_client.close()

    def _accept(self, *, tls: bool) -> asyncio.Protocol:
        if self.is_full:
            metrics.connections_refused.inc()
            return _Refusing()
        return _Negotiated(self) if tls else Connection(self, tls=False)


class _Negotiated(asyncio.Protocol):
    """Gives the connection to the version of HTTP that client and we agreed on (ALPN)."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        chosen = transport.get_extra_info("ssl_object").selected_alpn_protocol()
        connection: Connection | Http2Connection
        if chosen == PROTOCOL:
            connection = Http2Connection(self._edge)
        else:
            connection = Connection(self._edge, tls=True)
        transport.set_protocol(connection)
        connection.connection_made(transport)


class _Refusing(asyncio.Protocol):
    """Says that there are too many connections."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop has a class of its own
        transport.write(answers.refuse(TooManyConnectionsError(), None, [answers.CLOSE])[1])
        transport.close()
