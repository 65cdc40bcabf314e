"""A sandbox's network with the resolver and the gate, and servers that tell what reached them."""

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from tempfile import TemporaryDirectory
from typing import Any

from alcove.node.gatekeeper import Gatekeeper
from alcove.node.interceptor import Interceptor
from alcove.node.network import Link, Network
from alcove.node.resolver import Resolver
from alcove.wire.egress import EgressPolicy
from small_internet import SECONDS, SmallInternet, connect, in_netns, name_server, small_internet

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
A, AAAA, TXT, HTTPS = 1, 28, 16, 65


@dataclass
class Heard:
    """One connection as the server saw it."""

    address: str
    """Which of the world's addresses it came to."""
    data: bytes = b""
    """The first piece; the others are in `more`, an empty one at the end."""
    more: Queue[bytes] = field(default_factory=Queue)


class Server:
    """Listens on all addresses of the world; answers each piece with the same bytes."""

    def __init__(self, world: SmallInternet, answer: bytes = OK) -> None:
        self._socket = world.listener()
        self._socket.settimeout(None)
        self.port: int = self._socket.getsockname()[1]
        self.heard: Queue[Heard] = Queue()
        self._answer = answer
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        heard = Heard(client.getsockname()[0])
        with client:
            try:
                while piece := client.recv(1 << 16):
                    if not heard.data:
                        heard.data = piece
                        self.heard.put(heard)
                    else:
                        heard.more.put(piece)
                    client.sendall(self._answer)
            except OSError:
                pass
        heard.more.put(b"")


@dataclass
class Lab:
    world: SmallInternet
    network: Network
    gatekeeper: Gatekeeper
    guest: Link
    neighbour: Link
    names: dict[str, str]
    directory: Path
    """Of the daemons' files."""
    owner: str = ""
    """Whose slots they are, as far as the gate knows."""

    def set(self, policy: EgressPolicy, link: Link | None = None) -> None:
        """As KernelGround.set_policy does."""
        slot = (link or self.guest).slot

        async def change() -> None:
            self.gatekeeper.write(slot, policy, self.owner)
            await self.network.set_policy(slot, policy)
            await self.gatekeeper.judge(slot)

        asyncio.run(change())

    def seen(self) -> dict[str, Any]:
        """What the gate has recorded and counted since the last time."""
        return asyncio.run(self.gatekeeper.drain())

    def dial(self, address: str, port: int) -> socket.socket:
        return connect(self.guest.netns, address, port)

    def ask(
        self,
        name: str,
        record: int = A,
        *,
        server: str = "169.254.0.22",
        kind: socket.SocketKind = socket.SOCK_DGRAM,
    ) -> tuple[int, str]:
        """Response code and first address; raises OSError when there is no answer."""
        with in_netns(self.guest.netns, lambda: socket.socket(socket.AF_INET, kind)) as client:
            client.settimeout(SECONDS)
            client.connect((server, 53))
            return ask_on(client, name, record)


def ask_on(client: socket.socket, name: str, record: int = A) -> tuple[int, str]:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    query = struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0"
    query += struct.pack(">HH", record, 1)
    if client.type == socket.SOCK_STREAM:
        client.sendall(len(query).to_bytes(2) + query)
        answer = client.recv(4096)[2:]
        if not answer:
            raise ConnectionResetError("no answer")
    else:
        client.send(query)
        while (answer := client.recv(4096))[:2] != query[:2]:
            pass
    flags, _, answers = struct.unpack(">HHH", answer[2:8])
    return flags & 15, socket.inet_ntoa(answer[len(query) + 12 :][:4]) if answers else ""


def hello(name: str | None, version: ssl.TLSVersion | None = None) -> bytes:
    """The ClientHello that OpenSSL sends for a name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if version is not None:
        context.maximum_version = version
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake needs an answer")


def request(host: str, path: str = "/", extra: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{extra}\r\n".encode()


@contextmanager
def lab() -> Iterator[Lab]:
    with small_internet() as world, TemporaryDirectory() as directory:
        # Read as nobody, whom a temporary directory shuts out.
        Path(directory).chmod(0o755)
        network = Network(world.instance, world.slot_network, mtu=1500)
        host_address = network.rules.host_address
        run = Path(directory)
        (run / "resolv.conf").write_text(f"nameserver {world.public}\n")
        resolver = Resolver(host_address, run, run / "resolv.conf")
        interceptor = Interceptor(run, None)
        gatekeeper = Gatekeeper(host_address, world.slot_network, run, interceptor.door)
        names = {
            "allowed.example": world.public,
            "evil.example": world.other,
            "rebound.example": world.private,
            "metadata.example": "169.254.169.254",
            "ours.example": world.host,
        }

        async def build() -> Lab:
            await network.teardown()
            await network.setup()
            gatekeeper.prepare()
            await resolver.start()
            await gatekeeper.start()
            links = await network.create(3), await network.create(4)
            return Lab(world, network, gatekeeper, *links, names, run)

        async def end() -> None:
            await gatekeeper.stop()
            await resolver.stop()
            await network.teardown()

        with name_server(world, names):
            try:
                yield asyncio.run(build())
            finally:
                asyncio.run(end())
