"""Networks of slots on a real kernel: whole, repeated, half-made, and nothing left of them."""

import asyncio
import hashlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from alcove.node.network import Network, NetworkError
from small_internet import SmallInternet, connect, ip, listener, small_internet

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces"),
]

_BULK = os.urandom(1 << 20) * 16


@pytest.fixture(scope="module")
def world() -> Iterator[SmallInternet]:
    with small_internet() as world:
        yield world


@pytest.fixture
def network(world: SmallInternet) -> Iterator[Network]:
    network = Network(world.instance, world.slot_network, mtu=1500)
    asyncio.run(network.teardown())
    before = _kernel_objects(world)
    asyncio.run(network.setup())
    yield network
    asyncio.run(network.teardown())
    assert _kernel_objects(world) == before


def test_twenty_lives_leave_nothing(network: Network, world: SmallInternet) -> None:
    before = _kernel_objects(world)

    async def live() -> None:
        for _ in range(5):
            async with asyncio.TaskGroup() as tasks:
                for slot in range(4):
                    tasks.create_task(network.create(slot))
            assert await network.slots() == {0, 1, 2, 3}
            async with asyncio.TaskGroup() as tasks:
                for slot in range(4):
                    tasks.create_task(network.remove(slot))

    asyncio.run(live())
    assert asyncio.run(network.slots()) == set()
    assert _kernel_objects(world) == before


def test_every_call_may_be_repeated(network: Network) -> None:
    async def repeat() -> None:
        await network.remove(5)
        for _ in range(2):
            await network.setup()
            await network.create(5)
        await network.remove(5)
        await network.remove(5)
        assert await network.slots() == set()

    asyncio.run(repeat())


def test_remains_are_removed_before_any_setup(world: SmallInternet) -> None:
    network = Network(world.instance, world.slot_network, mtu=1500)
    ip(f"netns add {network.link(2).name}")
    asyncio.run(network.remove(2))
    assert asyncio.run(network.slots()) == set()
    asyncio.run(network.teardown())


@pytest.mark.parametrize("after_step", range(1, 6))
def test_what_a_kill_leaves_is_seen_replaced_and_removed(network: Network, after_step: int) -> None:
    link = network.link(6)
    steps = [
        f"ip netns add {link.name}",
        f"ip link add {link.veth} type veth peer name eth0 netns {link.name}",
        f"ip route add {link.address}/32 dev {link.veth}",
        f"nft add chain netdev {network.instance} enter-6",
        f"nft add element inet {network.instance} offline {{ {link.address} }}",
    ]
    steps.insert(2, f"ip link set {link.veth} up")

    def crash() -> None:
        for step in steps[: after_step + (after_step > 2)]:
            subprocess.run(step.split(), check=True)

    async def recover() -> None:
        assert await network.slots() == {6}
        await network.create(6)
        with listener(link.netns) as server:
            connect(None, str(link.address), server.getsockname()[1]).close()
        await network.remove(6)

    crash()
    asyncio.run(recover())
    crash()
    asyncio.run(network.remove(6))
    assert asyncio.run(network.slots()) == set()


def test_a_netns_file_without_a_namespace_is_no_obstacle(network: Network) -> None:
    link = network.link(6)
    link.netns.touch()
    assert asyncio.run(network.slots()) == {6}
    asyncio.run(network.create(6))
    ip(f"-netns {link.name} link show eth0")
    asyncio.run(network.remove(6))


def test_bulk_data_arrives_whole_both_ways(network: Network, world: SmallInternet) -> None:
    link = asyncio.run(network.create(7))
    with listener(link.netns) as server:
        _send_bulk_to(server, lambda port: connect(None, str(link.address), port))
    with world.listener() as server:
        _send_bulk_to(server, lambda port: connect(link.netns, world.public, port))


def test_setup_again_disturbs_no_connection(network: Network, world: SmallInternet) -> None:
    link = asyncio.run(network.create(8))
    with (
        world.listener() as server,
        connect(link.netns, world.public, server.getsockname()[1]) as client,
    ):
        peer, _ = server.accept()
        with peer:
            asyncio.run(network.setup())
            client.sendall(b"still here")
            assert peer.recv(100) == b"still here"


def test_the_mtu_is_that_of_the_uplink(world: SmallInternet, network: Network) -> None:
    narrow = Network(world.instance, world.slot_network, mtu=1337)
    link = asyncio.run(narrow.create(1))
    assert "mtu 1337" in ip(f"-netns {link.name} link show eth0")
    assert Path(f"/sys/class/net/{link.veth}/mtu").read_text().strip() == "1337"
    asyncio.run(network.remove(1))


def test_a_slot_network_that_is_taken_is_refused(network: Network, world: SmallInternet) -> None:
    other = Network(f"{world.instance}x", IPv4Network(network.slot_network), mtu=1500)
    with pytest.raises(NetworkError, match="on device lo"):
        asyncio.run(other.setup())


def test_a_route_into_the_slot_network_is_refused(network: Network, world: SmallInternet) -> None:
    asyncio.run(network.setup())
    ip(f"route add {network.link(9).address}/32 dev {world.device}")
    try:
        with pytest.raises(NetworkError, match=f"on device {world.device}"):
            asyncio.run(network.setup())
    finally:
        ip(f"route delete {network.link(9).address}/32 dev {world.device}")


def _send_bulk_to(server, dial) -> None:
    received = hashlib.sha256()

    def receive() -> None:
        peer, _ = server.accept()
        with peer:
            while data := peer.recv(1 << 16):
                received.update(data)

    receiver = threading.Thread(target=receive)
    receiver.start()
    with dial(server.getsockname()[1]) as client:
        client.sendall(_BULK)
    receiver.join()
    assert received.digest() == hashlib.sha256(_BULK).digest()


def _kernel_objects(world: SmallInternet) -> dict[str, list[str]]:
    """Everything of this laboratory's instance, by kind."""
    instance, network = world.instance, str(world.slot_network)
    links = [link["ifname"] for link in json.loads(ip("-json link show"))]
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout
    return {
        "namespaces": sorted(path.name for path in Path("/run/netns").glob(f"{instance}-*")),
        "links": sorted(name for name in links if name.startswith(f"{instance}-")),
        "routes": ip(f"route show table all root {network}").splitlines(),
        "tables": [line for line in tables.splitlines() if line.endswith(f" {instance}")],
        "chains": [
            line.strip()
            for table in tables.splitlines()
            if table.endswith(f" {instance}")
            for line in subprocess.run(
                ["nft", "list", *table.split()], capture_output=True, text=True
            ).stdout.splitlines()
            if "chain " in line
        ],
    }
