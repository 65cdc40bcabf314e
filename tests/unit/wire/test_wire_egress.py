from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.wire.egress import EVERYTHING, NOTHING, EgressPolicy, Names, disjoint, matches

_NETWORKS = st.builds(
    lambda address, length: str(IPv4Network((address, length), strict=False)),
    st.integers(0, 2**32 - 1),
    st.integers(8, 32),
)


@pytest.mark.parametrize(
    ("domain", "name", "stands"),
    [
        ("a.example", "a.example", True),
        ("a.example", "A.Example.", True),
        ("a.example", "b.a.example", False),
        ("a.example", "ba.example", False),
        ("*.a.example", "b.a.example", True),
        ("*.a.example", "c.b.a.example", True),
        ("*.a.example", "a.example", False),
        ("*.a.example", ".a.example", False),
        ("*.a.example", "xa.example", False),
        ("*.a.example", "a.example.evil.example", False),
    ],
)
def test_domains_match_whole_labels(domain: str, name: str, stands: bool) -> None:
    assert matches(domain, name) is stands


@pytest.mark.parametrize(
    ("policy", "names"),
    [
        (EgressPolicy(), Names.ALL),
        (EgressPolicy(deny=("9.9.9.9/32",)), Names.ALL),
        (EgressPolicy(dns_servers=("9.9.9.9",)), Names.ALL),
        (NOTHING, Names.NONE),
        (EgressPolicy(deny=(EVERYTHING,), allow=("1.1.1.1/32",)), Names.NONE),
        (EgressPolicy(deny=(EVERYTHING,), domains=("a.example",)), Names.ALLOWED),
        (EgressPolicy(deny=(EVERYTHING,), domains=("a.example",), dns_servers=()), Names.NONE),
        (EgressPolicy(dns_servers=()), Names.NONE),
    ],
)
def test_which_names_may_be_looked_up(policy: EgressPolicy, names: Names) -> None:
    assert policy.names is names


@given(st.lists(_NETWORKS, max_size=20))
def test_disjoint_networks_hold_the_same_addresses(networks: list[str]) -> None:
    apart = [IPv4Network(network) for network in disjoint(networks)]
    for one in map(IPv4Network, networks):
        for address in (one.network_address, one.broadcast_address):
            assert sum(IPv4Address(address) in other for other in apart) == 1


def test_a_policy_survives_its_journey_and_its_digest_is_its_own() -> None:
    policies = [
        EgressPolicy(),
        EgressPolicy(dns_servers=()),
        NOTHING,
        EgressPolicy(allow=("1.1.1.1/32",)),
        EgressPolicy(deny=("1.1.1.1/32",)),
        EgressPolicy(deny=(EVERYTHING,), domains=("a.example",)),
    ]
    for policy in policies:
        assert EgressPolicy.from_json(policy.to_json()) == policy
    assert len({policy.digest() for policy in policies}) == len(policies)
    one, other = ("1.1.1.1/32", "2.2.2.2/32"), ("2.2.2.2/32", "1.1.1.1/32")
    assert EgressPolicy(allow=one).digest() == EgressPolicy(allow=other).digest()


@pytest.mark.parametrize(
    "data",
    [{"allow": ["a.example"]}, {"allow": [1]}, {"deny": 5}, {"dns_servers": ["::1"]}],
)
def test_what_is_no_policy_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        EgressPolicy.from_json(data)


def test_addresses_are_judged_as_the_packet_rules_do() -> None:
    policy = EgressPolicy(allow=("9.9.9.9/32",), deny=("9.9.9.0/24",))
    assert policy.allows_address("9.9.9.9")
    assert not policy.allows_address("9.9.9.8")
    assert policy.allows_address("8.8.8.8")
    assert not EgressPolicy(deny=("0.0.0.0/0",), domains=("a.b",)).allows_address("8.8.8.8")


def test_interception_is_part_of_the_policy_and_opens_nothing() -> None:
    policy = EgressPolicy(deny=("0.0.0.0/0",), intercepted=("*.a.b",))
    assert policy.intercepts("x.a.b")
    assert not policy.intercepts("a.b")
    assert not policy.allows_name("x.a.b")
    assert EgressPolicy.from_json(policy.to_json()) == policy
    assert policy.digest() != EgressPolicy(deny=("0.0.0.0/0",)).digest()
