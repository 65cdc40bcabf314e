"""The sandboxes' resolver: whom it answers and what, and that it outlives and dies as it should."""

import asyncio
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from alcove.concurrency import spawn
from alcove.node import pidfd
from alcove.node.egress import GATEWAY_ADDRESS
from alcove.node.network import Link, Network
from alcove.node.resolver import Resolver
from small_internet import SECONDS, SmallInternet, connect, in_netns, name_server, small_internet

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces"),
]

_A, _AAAA = 1, 28
_NO_ERROR, _NO_SUCH_NAME = 0, 3
_ANSWERS = {
    "public.example": "203.0.113.5",
    "rebound.example": "192.168.0.1",
    "metadata.example": "169.254.169.254",
    "local.example": "127.0.0.1",
}


@pytest.fixture(scope="module")
def world() -> Iterator[SmallInternet]:
    with small_internet() as world:
        yield world


@pytest.fixture(scope="module")
def network(world: SmallInternet) -> Network:
    return Network(world.instance, world.slot_network, mtu=1500)


@pytest.fixture(scope="module")
def guest(network: Network) -> Iterator[Link]:
    async def build() -> Link:
        await network.teardown()
        await network.setup()
        return await network.create(1)

    try:
        yield asyncio.run(build())
    finally:
        asyncio.run(network.teardown())


@pytest.fixture(scope="module")
def upstream(world: SmallInternet) -> Iterator[Path]:
    """The resolv.conf of a host whose name server knows _ANSWERS."""
    with name_server(world, _ANSWERS), TemporaryDirectory() as directory:
        # Read as nobody, whom pytest's own directories shut out.
        Path(directory).chmod(0o755)
        path = Path(directory) / "resolv.conf"
        path.write_text(f"nameserver {world.public}\n")
        yield path


@pytest.fixture
def resolver(
    world: SmallInternet, guest: Link, upstream: Path, tmp_path: Path
) -> Iterator[Resolver]:
    resolver = Resolver(world.slot_network[1], tmp_path, upstream)
    asyncio.run(resolver.start())
    yield resolver
    asyncio.run(resolver.stop())
    assert not _listens(guest)


@pytest.mark.parametrize("server", [str(GATEWAY_ADDRESS), "8.8.8.8", "10.1.2.3"])
@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_queries_to_any_server_are_answered_by_ours(
    resolver: Resolver, guest: Link, server: str, kind: socket.SocketKind
) -> None:
    if kind == socket.SOCK_STREAM:
        _ask(guest, "public.example")  # to have it in the cache: upstream speaks no TCP
    assert _ask(guest, "public.example", server=server, kind=kind) == (_NO_ERROR, "203.0.113.5")


@pytest.mark.parametrize("name", ["rebound.example", "metadata.example", "local.example"])
def test_names_do_not_lead_to_private_addresses(resolver: Resolver, guest: Link, name: str) -> None:
    assert _ask(guest, name) == (_NO_SUCH_NAME, "")


def test_who_is_cut_off_has_no_names_even_on_an_open_connection(
    resolver: Resolver, guest: Link, network: Network
) -> None:
    with connect(guest.netns, str(GATEWAY_ADDRESS), 53) as client:
        asyncio.run(network.set_internet(guest.slot, allowed=False))
        try:
            client.send(b"x")
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        finally:
            asyncio.run(network.set_internet(guest.slot, allowed=True))


def test_there_are_no_ipv6_addresses(resolver: Resolver, guest: Link) -> None:
    assert _ask(guest, "public.example", record=_AAAA) == (_NO_ERROR, "")


def test_a_subreaper_is_left_no_zombies(resolver: Resolver) -> None:
    pidfd.become_subreaper()
    before = _zombies_of_ours()  # of other tests in this process

    async def restart() -> None:
        for _ in range(3):
            await resolver.stop()
            await resolver.start()

    asyncio.run(restart())
    assert set(_zombies_of_ours()) <= set(before)


def test_a_new_node_adopts_it(resolver: Resolver, world: SmallInternet, upstream: Path) -> None:
    pid_file = resolver._pid_file
    pid = pid_file.read_text()
    asyncio.run(Resolver(world.slot_network[1], pid_file.parent, upstream).start())
    assert pid_file.read_text() == pid


def test_one_with_other_arguments_is_replaced(
    resolver: Resolver, world: SmallInternet, tmp_path: Path
) -> None:
    pid = int(resolver._pid_file.read_text())
    other = tmp_path / "resolv.conf"
    other.write_text("")
    asyncio.run(Resolver(world.slot_network[1], tmp_path, other).start())
    assert int(resolver._pid_file.read_text()) != pid
    assert not _runs(pid)


def test_a_stranger_with_its_pid_is_left_alone(resolver: Resolver, guest: Link) -> None:
    asyncio.run(resolver.stop())
    resolver._pid_file.write_text(str(os.getpid()))
    asyncio.run(resolver.start())
    assert _ask(guest, "public.example") == (_NO_ERROR, "203.0.113.5")


def test_it_is_started_again_when_it_dies(resolver: Resolver, guest: Link) -> None:
    first = int(resolver._pid_file.read_text())

    async def supervise() -> None:
        running = spawn(resolver.run(), name="resolver")
        died = os.pidfd_open(first)
        os.kill(first, signal.SIGKILL)
        await pidfd.ended(died)
        os.close(died)
        await asyncio.to_thread(_wait_until_it_listens, guest)
        running.cancel()
        await resolver.start()

    asyncio.run(supervise())
    assert int(resolver._pid_file.read_text()) != first


def _ask(
    guest: Link,
    name: str,
    *,
    server: str = str(GATEWAY_ADDRESS),
    record: int = _A,
    kind: socket.SocketKind = socket.SOCK_DGRAM,
) -> tuple[int, str]:
    """The response code and the address in the answer, if any."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    query = struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0"
    query += struct.pack(">HH", record, 1)
    with in_netns(guest.netns, lambda: socket.socket(socket.AF_INET, kind)) as client:
        client.settimeout(SECONDS)
        client.connect((server, 53))
        if kind == socket.SOCK_STREAM:
            client.sendall(len(query).to_bytes(2) + query)
            answer = client.recv(4096)[2:]
        else:
            client.send(query)
            answer = client.recv(4096)
    flags, _, answers = struct.unpack(">HHH", answer[2:8])
    return flags & 15, socket.inet_ntoa(answer[len(query) + 12 :][:4]) if answers else ""


def _listens(guest: Link) -> bool:
    try:
        connect(guest.netns, str(GATEWAY_ADDRESS), 53).close()
    except ConnectionRefusedError:
        return False
    return True


def _wait_until_it_listens(guest: Link) -> None:
    until = time.monotonic() + SECONDS
    while not _listens(guest):
        assert time.monotonic() < until
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    return (
        Path(f"/proc/{pid}/cmdline").exists()
        and b"dnsmasq" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )


def _zombies_of_ours() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            name, _, rest = path.read_text().rpartition(")")
            if name.endswith("(dnsmasq") and rest.split()[:2] == ["Z", str(os.getpid())]:
                found.append(name)
    return found
