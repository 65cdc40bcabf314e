from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from alcove.node.network import Network, NetworkError

SLOTS = IPv4Network("10.231.0.0/24")


def test_a_slot_names_everything_it_has() -> None:
    link = Network("nn", SLOTS, mtu=1400).link(7)
    assert link.name == link.veth == "nn-7"
    assert link.netns == Path("/run/netns/nn-7")
    assert link.address == IPv4Address("10.231.0.9")
    assert link.mtu == 1400


def test_no_two_slots_share_an_address_and_none_has_the_hosts() -> None:
    network = Network("nn", SLOTS, mtu=1400)
    addresses = {network.link(slot).address for slot in range(network.slots_max)}
    assert len(addresses) == network.slots_max == 253
    assert addresses.isdisjoint({SLOTS[0], network.rules.host_address, SLOTS[255]})


@pytest.mark.parametrize("slot", [-1, 253])
def test_a_slot_beyond_the_network_is_an_error(slot: int) -> None:
    with pytest.raises(NetworkError, match="larger slot network"):
        Network("nn", SLOTS, mtu=1400).link(slot)


@pytest.mark.parametrize("instance", ["", "1a", "a-b", "A", "abcdefghijk", "a\n", "../x"])
def test_an_instance_name_fits_into_kernel_names(instance: str) -> None:
    with pytest.raises(NetworkError, match="instance"):
        Network(instance, SLOTS, mtu=1400)


def test_a_device_name_that_would_be_cut_is_an_error() -> None:
    network = Network("abcdefghij", IPv4Network("10.0.0.0/8"), mtu=1400)
    assert network.link(9999).veth == "abcdefghij-9999"
    with pytest.raises(NetworkError, match="shorter instance name"):
        network.link(10000)
