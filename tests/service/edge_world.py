"""What stands around the edge in its tests: ingress, control and servers, on real sockets."""

import asyncio
import json
import socket
import ssl
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field

import uvloop

from alcove.concurrency import every
from alcove.edge.proxy import Edge
from alcove.edge.routing import Router

TOKEN = "cluster-token"
DOMAIN = "alcove.localhost"
ONE, TWO = "i1111111111", "i2222222222"

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Ingress:
    """The node's side: CONNECT {port}-{sandbox}, then bytes."""

    ports: dict[tuple[str, int], int] = field(default_factory=dict)
    """(sandbox, port) -> where its server listens on loopback."""
    generations: dict[str, int] = field(default_factory=dict)
    connects: Counter[tuple[str, int]] = field(default_factory=Counter)
    saving: dict[str, asyncio.Event] = field(default_factory=dict)
    """Sandboxes that are being saved: tunnels to them wait for the event."""
    tunnels: dict[str, set[asyncio.StreamWriter]] = field(default_factory=dict)

    async def serve(self, reader, writer) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, name, _ = head[0].split(" ")
        fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        assert method == "CONNECT"
        assert fields["authorization"] == f"bearer {TOKEN}"
        port, sandbox = name.split("-")
        key = (sandbox, int(port))
        self.connects[key] += 1
        if sandbox in self.saving:
            await self.saving[sandbox].wait()
        if self.generations.get(sandbox) != int(fields["x-alcove-generation"]):
            await _say(writer, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        try:
            there = await asyncio.open_connection("127.0.0.1", self.ports.get(key, 1))
        except OSError:
            await _say(writer, b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
            return
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        mine = self.tunnels.setdefault(sandbox, set())
        mine.add(writer)
        async with asyncio.TaskGroup() as group:
            group.create_task(_splice(reader, there[1]))
            group.create_task(_splice(there[0], writer))
        mine.discard(writer)
        for end in (writer, there[1]):
            end.close()

    def kill(self, sandbox: str) -> None:
        self.generations.pop(sandbox, None)
        for tunnel in self.tunnels.pop(sandbox, set()):
            reset(tunnel)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, as the node does for a sandbox that is gone."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


async def _splice(reader, writer) -> None:
    try:
        while data := await reader.read(256 * 1024):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except (OSError, RuntimeError):
        writer.transport.abort()


async def _say(writer, text: bytes) -> None:
    writer.write(text)
    with suppress(OSError):
        await writer.drain()
    writer.close()


@dataclass
class Control:
    """Answers /internal/routes, wakes and, as the public API does, anything else."""

    routes: dict[str, dict] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    wake: Callable[[str], Awaitable[tuple[int, dict]]] | None = None
    """What it does when it is asked to wake a sandbox: status and body of its answer."""
    is_down: bool = False
    """Connections break when something is asked."""
    route_delays: dict[str, asyncio.Event] = field(default_factory=dict)
    """Sandboxes whose route is answered only after the event, as during a resume."""
    begun: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    """Sandboxes to be told of on GET /internal/routes; "" ends that answer."""

    async def serve(self, reader, writer) -> None:
        with suppress(asyncio.IncompleteReadError, OSError), closing(writer):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                path = head.split(" ")[1]
                self.asked[path] += 1
                if self.is_down:
                    raise ConnectionResetError
                if path.endswith("/wake"):
                    assert head.startswith("POST /internal/sandboxes/")
                    assert f"Authorization: Bearer {TOKEN}" in head
                    assert self.wake is not None
                    writer.write(_json(*await self.wake(path.split("/")[3])))
                    continue
                if path == "/internal/routes":
                    await self._tell(writer)
                    return
                if not path.startswith("/internal/routes/"):
                    writer.write(_json(200, {"path": path}))
                    continue
                assert f"Authorization: Bearer {TOKEN}" in head
                if delay := self.route_delays.get(path.rsplit("/", 1)[1]):
                    await delay.wait()
                route = self.routes.get(path.rsplit("/", 1)[1])
                writer.write(_json(200, route) if route else _json(404, {"code": 404}))

    async def _tell(self, writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n\n\r\n")
        while sandbox := await self.begun.get():
            line = json.dumps(self.routes[sandbox]).encode() + b"\n"
            for part in (line[:20], line[20:]):
                writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                await writer.drain()
        writer.write(b"0\r\n\r\n")


def _json(status: int, body: dict) -> bytes:
    content = json.dumps(body).encode()
    return b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        status,
        len(content),
        content,
    )


@dataclass
class World:
    edge: Edge
    port: int
    ingress: Ingress
    control: Control
    ingress_port: int
    _stack: AsyncExitStack
    control_server: asyncio.Server

    async def sandbox(self, sandbox: str = ONE, ports: dict[int, Handler] | None = None, **route):
        """Make a sandbox known, with a server behind each of its ports."""
        generation, tls = route.pop("generation", 1), route.pop("tls", {})
        self.ingress.generations[sandbox] = generation
        self.control.routes[sandbox] = {
            "sandbox_id": sandbox,
            "generation": generation,
            "access_token": "secret",
            "traffic_token": None,
            **self._up,
            **route,
        }
        for port, handler in (ports or {}).items():
            server = await self._stack.enter_async_context(serving(handler, tls.get(port)))
            self.ingress.ports[sandbox, port] = port_of(server)

    def pause(self, sandbox: str = ONE, *, auto_resume: bool = True) -> None:
        """Pause a sandbox: its node cuts its tunnels, its servers are kept."""
        self.control.routes[sandbox] |= {
            "state": "paused", "auto_resume": auto_resume, "node_ingress": "",
        }  # fmt: skip
        self.ingress.kill(sandbox)

    async def resume(self, sandbox: str = ONE) -> tuple[int, dict]:
        """Begin a new life of a paused sandbox; what control answers to a wake."""
        route = self.control.routes[sandbox]
        await self.sandbox(sandbox, **route | {"generation": route["generation"] + 1, **self._up})
        return 200, self.control.routes[sandbox]

    @property
    def _up(self) -> dict:
        return {"state": "running", "node_ingress": f"127.0.0.1:{self.ingress_port}"}

    async def connect(self):
        return await asyncio.open_connection("127.0.0.1", self.port, limit=1024 * 1024)

    async def ask(self, request: bytes) -> bytes:
        """Everything the edge answers until it closes the connection."""
        reader, writer = await self.connect()
        writer.write(request)
        try:
            return await reader.read()
        finally:
            writer.close()

    async def get(self, path: str = "/", sandbox: str = ONE, port: int = 8000, more: str = ""):
        """Status, head and body of one GET on a connection of its own."""
        answer = await self.ask(
            f"GET {path} HTTP/1.1\r\nHost: {port}-{sandbox}.{DOMAIN}\r\n"
            f"Connection: close\r\n{more}\r\n".encode()
        )
        return parse(answer)


@dataclass
class Answer:
    status: int
    head: str
    body: bytes

    def json(self):
        return json.loads(self.body)

    def field(self, name: str) -> str | None:
        for line in self.head.split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.lower() == name.lower():
                return value.strip()
        return None


def parse(answer: bytes) -> Answer:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head, "no answer"
    return Answer(int(head.split(b" ")[1]), head.decode("latin-1"), body)


async def read_answer(reader) -> Answer:
    """One answer of a kept connection, framed by Content-Length or chunks."""
    head = await reader.readuntil(b"\r\n\r\n")
    answer = parse(head)
    if answer.field("transfer-encoding") == "chunked":
        while True:
            size = int(await reader.readline(), 16)
            answer.body += await reader.readexactly(size)
            await reader.readexactly(2)
            if size == 0:
                break
    else:
        answer.body = await reader.readexactly(int(answer.field("content-length") or 0))
    return answer


def port_of(server: asyncio.Server) -> int:
    return server.sockets[0].getsockname()[1]


@asynccontextmanager
async def serving(
    handler: Handler, tls: ssl.SSLContext | None = None
) -> AsyncIterator[asyncio.Server]:
    async def guarded(reader, writer) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            await handler(reader, writer)

    server = await asyncio.start_server(guarded, "127.0.0.1", 0, limit=1024 * 1024, ssl=tls)
    try:
        yield server
    finally:
        server.close()


@asynccontextmanager
async def world(**options) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        ingress, control = Ingress(), Control()
        ingress_server = await stack.enter_async_context(serving(ingress.serve))
        control_server = await stack.enter_async_context(serving(control.serve))
        edge = Edge(
            router=Router(f"api.{DOMAIN}", frozenset({"edge.internal"})),
            control=("127.0.0.1", port_of(control_server)),
            cluster_token=TOKEN,
            max_connections=options.get("max_connections", 1000),
        )
        server = await asyncio.get_running_loop().create_server(edge.accept, "127.0.0.1", 0)
        async with asyncio.TaskGroup() as group:
            sweeping = group.create_task(every(0.05, edge.sweep))
            yield World(
                edge, port_of(server), ingress, control, port_of(ingress_server), stack,
                control_server,
            )  # fmt: skip
            server.close()
            await edge.drain(0.1)
            sweeping.cancel()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await test()

    uvloop.run(limited())


def in_world(test: Callable[[World], Awaitable[None]]) -> Callable[[], None]:
    """Run an async test with a world of its own."""

    def wrapped() -> None:
        async def body() -> None:
            async with world() as there:
                await test(there)

        run(body)

    wrapped.__name__ = test.__name__
    wrapped.__doc__ = test.__doc__
    return wrapped


def request(
    sandbox: str = ONE, port: int = 8000, line: str = "GET / HTTP/1.1", more: str = ""
) -> bytes:
    return f"{line}\r\nHost: {port}-{sandbox}.{DOMAIN}\r\n{more}\r\n".encode()


async def eventually(condition: Callable[[], object]) -> None:
    """Wait for something inside the edge that shows itself to no client."""
    while not condition():  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0.005)


# Servers of users.


async def read_request(reader) -> tuple[str, bytes]:
    """Head and body, for servers of tests."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    lower = head.lower()
    body = b""
    if "transfer-encoding: chunked" in lower:
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
    elif "content-length: " in lower:
        body = await reader.readexactly(int(lower.split("content-length: ")[1].split("\r\n")[0]))
    return head, body


def echo(label: str = "") -> Handler:
    """Answers each request with what it saw, as JSON; keeps connections."""

    async def handler(reader, writer) -> None:
        served = 0
        while not reader.at_eof():
            head, body = await read_request(reader)
            served += 1
            text = {"label": label, "head": head, "body": body.decode("latin-1"), "nth": served}
            writer.write(_json(200, text))
            await writer.drain()

    return handler


def fixed(response: bytes, *, close: bool = True) -> Handler:
    """Reads a head and answers with these bytes."""

    async def handler(reader, writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response)
        await writer.drain()
        if close:
            writer.close()
        else:
            await reader.read()

    return handler
