import re
from ipaddress import IPv4Address, IPv4Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.node.egress import GUEST_ADDRESS, Rules
from alcove.wire.egress import REFUSED_NETWORKS

RULES = Rules("nn", IPv4Network("10.231.0.0/16"))


@pytest.mark.parametrize(
    "address",
    [
        "0.1.2.3",
        "10.0.0.1",
        "10.255.255.53",
        "100.64.0.1",
        "100.127.255.255",
        "127.0.0.1",
        "169.254.169.254",
        "169.254.0.22",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.192",
        "192.168.0.1",
        "198.19.0.1",
        "224.0.0.251",
        "240.0.0.1",
        "255.255.255.255",
    ],
)
def test_refused_networks_hold_every_private_address(address: str) -> None:
    assert any(IPv4Address(address) in ip_network(network) for network in REFUSED_NETWORKS)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "100.128.0.1", "172.32.0.1", "192.0.2.1", "223.255.255.1"]
)
def test_refused_networks_leave_the_internet(address: str) -> None:
    assert not any(IPv4Address(address) in ip_network(network) for network in REFUSED_NETWORKS)


@given(st.integers(1, 0xFFFFFFFE).map(IPv4Address))
def test_a_repaired_quotation_keeps_its_checksum(address: IPv4Address) -> None:
    rules = [line for line in RULES.slot(1, "nn-1", address).splitlines() if "@th" in line]
    assert len(rules) == 2
    for rule in rules:
        old = re.findall(r"@th,\d+,\d+ (0x\w+)", rule)
        *new, identification = re.findall(r"@th,\d+,\d+ set (0x\w+)", rule)
        assert int(old[0], 16) == int(address)
        assert int(new[0], 16) == int(GUEST_ADDRESS)
        assert int(identification, 16) <= 0xFFFF
        before, after = _sum16(old), _sum16(new) + int(identification, 16)
        assert (after - before) % 0xFFFF == 0


def test_replacing_the_rules_keeps_who_is_cut_off() -> None:
    address = IPv4Address("10.231.0.9")
    assert RULES.host([address]).endswith(RULES.offline(address))


def test_names_of_other_instances_do_not_match() -> None:
    assert RULES.devices == '"nn-*"'
    assert '"nn*"' not in RULES.host()


def _sum16(numbers: list[str]) -> int:
    return sum(sum(divmod(int(number, 16), 1 << 16)) for number in numbers)
