"""Ports that a service inside opened only on loopback, made reachable from outside.

The node calls POST /forward {"port": N} when the sandbox's address refuses a connection. If a
loopback-only listener explains that, a relay listens on the sandbox's own address until the service
is gone: it would keep the service from binding the port again on all addresses (contract e2b 3.8).

    none ──asked, loopback listener──▶ RELAYING ──service gone · unused for a while──▶ none
"""

import asyncio
import fcntl
import json
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from alcove.concurrency import spawn
from alcove.guest.app import Route
from alcove.guest.http import HttpError, Request, Response
from alcove.wire.hosts import MAX_PORT, MIN_PORT

_LISTEN = "0A"
_SIOCGIFADDR = 0x8915
_CHUNK_BYTES = 64 * 1024
# A timer runs only while a relay exists, and an unused relay does not exist for long.
_CHECK_S = 1.0
_UNUSED_S = 30.0
_MAX_BODY_BYTES = 1024


@dataclass(frozen=True, slots=True)
class _Listener:
    family: socket.AddressFamily
    address: str

    @property
    def loopback(self) -> bool:
        return _is_loopback(self.address)


def routes(forwarder: "Forwarder") -> list[Route]:
    async def forward(request: Request) -> Response:
        port = _parse_port(await request.read(_MAX_BODY_BYTES))
        return Response.json({"open": await forwarder.open(port)})

    return [("POST", "/forward", forward)]


class Forwarder:
    """The relays of this sandbox, one per port."""

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._relays: dict[int, _Relay] = {}

    async def open(self, port: int) -> bool:
        """Make the port reachable from outside; False when nothing listens on it."""
        listeners = _listeners(port)
        relay = self._relays.get(port)
        own = {relay.address} if relay is not None else set()
        services = [listener for listener in listeners if listener.address not in own]
        if not services:
            return False
        if relay is not None or not all(service.loopback for service in services):
            return True
        address = self._address or _own_address()
        if address is None:
            return False
        relay = _Relay(address, port, services[0], self._forget)
        self._relays[port] = relay
        try:
            await relay.listen()
        except OSError:
            del self._relays[port]
            # Somebody took the address meanwhile: then the port is open, if not by us.
            return any(not listener.loopback for listener in _listeners(port))
        return True

    def close(self) -> None:
        """Close every relay."""
        for relay in list(self._relays.values()):
            relay.close()

    def _forget(self, port: int) -> None:
        self._relays.pop(port, None)


class _Relay:
    """Listens where the node dials and passes connections on to the service."""

    def __init__(
        self, address: str, port: int, service: _Listener, on_close: Callable[[int], None]
    ) -> None:
        self.address = address
        self._port = port
        self._service = service
        self._on_close = on_close
        self._connections = 0
        self._unused_since_s = asyncio.get_running_loop().time()
        self._server: asyncio.Server | None = None
        self._watching: asyncio.Task[None] | None = None

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._pass_on, self.address, self._port)
        self._watching = spawn(self._watch(), name=f"relay of port {self._port}")

    async def _watch(self) -> None:
        """Close when the service is gone or nobody has used the relay for a while."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_CHECK_S)
            unused = not self._connections and loop.time() - self._unused_since_s > _UNUSED_S
            if unused or self._service not in _listeners(self._port):
                break
        self.close()

    def close(self) -> None:
        """Stop listening; connections that are open end with the service."""
        if self._server is not None:
            self._server.close()
        if self._watching is not None:
            self._watching.cancel()
        self._on_close(self._port)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            there = await asyncio.open_connection(self._service.address, self._port)
        except OSError:
            writer.transport.abort()
        else:
            await _join((reader, writer), there)
        finally:
            self._connections -= 1
            self._unused_since_s = asyncio.get_running_loop().time()


async def _join(
    left: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    right: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> None:
    """Copy both ways until both sides have ended, or one has failed."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_copy(left[0], right[1]))
            group.create_task(_copy(right[0], left[1]))
    except* OSError:
        pass  # one side broke; closing below tells the other
    finally:
        left[1].transport.abort()
        right[1].transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


def _listeners(port: int) -> list[_Listener]:
    """Who listens on a port, from /proc/net."""
    found = []
    for family, path in (
        (socket.AF_INET, "/proc/net/tcp"),
        (socket.AF_INET6, "/proc/net/tcp6"),
    ):
        try:
            with open(path, encoding="ascii") as file:
                rows = [line.split() for line in file.readlines()[1:]]
        except OSError:
            continue
        for row in rows:
            address, _, number = row[1].partition(":")
            if row[3] == _LISTEN and int(number, 16) == port:
                found.append(_Listener(family, _address(family, address)))
    return found


def _address(family: socket.AddressFamily, text: str) -> str:
    """An address of /proc/net: groups of 32 bits, each in the machine's byte order."""
    raw = bytes.fromhex(text)
    words = struct.iter_unpack("=I", raw)
    return socket.inet_ntop(family, b"".join(struct.pack("!I", word) for (word,) in words))


def _is_loopback(address: str) -> bool:
    return address == "::1" or address.removeprefix("::ffff:").startswith("127.")


def _own_address() -> str | None:
    """The IPv4 address by which the node reaches this sandbox."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:
                continue  # no address
            address = socket.inet_ntoa(answer[20:24])
            if not _is_loopback(address):
                return address
    return None


def _parse_port(body: bytes) -> int:
    try:
        port = json.loads(body)["port"]
    except (ValueError, KeyError, TypeError) as error:
        raise HttpError(400, 'the body must be {"port": N}') from error
    if not isinstance(port, int) or isinstance(port, bool) or not MIN_PORT <= port <= MAX_PORT:
        raise HttpError(400, f"port must be a whole number from {MIN_PORT} to {MAX_PORT}")
    return port
