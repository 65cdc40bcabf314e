"""One sandbox's own rules (wire/egress.py) as nftables text, beside those of all (egress.py).

    first packet      prerouting   @steers: address -> steer-<slot>     to whom names and TCP go
    every packet      forward      @policies: address -> policy-<slot>  returns, or refuses
    queries           input        @policies

The destination that is judged is the one the guest asked for, in either direction: a change holds
for connections that are open. A sandbox that has no rules of its own is in neither map.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from alcove.wire.egress import EgressPolicy, Names, disjoint

GATE_PORT = 14443
GATE_DNS_PORT = 14053
"""On the host's end of the slot network: TCP that is judged by name, and names (gate/)."""

DNS = "meta l4proto { tcp, udp } th dport 53"


@dataclass(frozen=True, slots=True)
class PolicyRules:
    """The rules of single sandboxes of one instance."""

    instance: str
    slot_network: IPv4Network
    host_address: IPv4Address
    never: Iterable[str]
    """Networks that no policy can open."""

    @property
    def _table(self) -> str:
        return f"inet {self.instance}"

    def declare(self) -> list[str]:
        return [
            f"add map {self._table} {name} {{ type ipv4_addr : verdict; }}"
            for name in ("policies", "steers")
        ]

    def put(self, slot: int, address: IPv4Address, policy: EgressPolicy) -> str:
        """The slot's rules in place of those it has, in one transaction."""
        if policy.is_default:
            return self.drop(slot, address)
        allow, deny = disjoint(policy.allow), disjoint(policy.deny)
        return "\n".join(
            [
                *self._sets(slot, allow, deny),
                *self._chain("policy", slot, self._judge(slot, policy, allow, deny)),
                f"add element {self._table} policies {{ {address} : jump policy-{slot} }}",
                *self._chain("steer", slot, self._steer(slot, policy, allow)),
                f"add element {self._table} steers {{ {address} : jump steer-{slot} }}",
                "",
            ]
        )

    def drop(self, slot: int, address: IPv4Address) -> str:
        """Forget the slot's rules, whether it has any or not."""
        lines = [f"add table {self._table}", *self.declare()]
        for chain, of in (("policy", "policies"), ("steer", "steers")):
            element = f"element {self._table} {of} {{ {address} : jump {chain}-{slot} }}"
            name = f"chain {self._table} {chain}-{slot}"
            lines += [f"add {name}", f"add {element}", f"delete {element}"]
            lines += [f"flush {name}", f"delete {name}"]
        for of in ("allow", "deny"):
            name = f"{self._table} {of}-{slot}"
            lines += [f"add set {name} {_NETWORKS}", f"delete set {name}"]
        return "\n".join([*lines, ""])

    def _sets(self, slot: int, allow: list[str], deny: list[str]) -> list[str]:
        lines = []
        for of, networks in (("allow", allow), ("deny", deny)):
            name = f"{self._table} {of}-{slot}"
            lines += [f"add set {name} {_NETWORKS}", f"flush set {name}"]
            if networks:
                lines.append(f"add element {name} {{ {', '.join(networks)} }}")
        return lines

    def _chain(self, kind: str, slot: int, rules: list[str]) -> list[str]:
        name = f"{self._table} {kind}-{slot}"
        added = [f"add rule {name} {rule}" for rule in rules]
        return [f"add chain {name}", f"flush chain {name}", *added]

    def _judge(
        self, slot: int, policy: EgressPolicy, allow: list[str], deny: list[str]
    ) -> list[str]:
        wanted, rules = "ct original ip daddr", []
        if policy.names is Names.ALL:
            # The resolver that guests know as theirs is in a private range they may well deny.
            rules.append(f"{wanted} {self.host_address} return")
        if policy.proxy is not None:
            # TCP is at the gate; the rest would go past the proxy.
            return [*rules, "jump refuse"]
        if allow:
            rules.append(f"{wanted} @allow-{slot} return")
        if policy.denies_everything:
            rules.append("jump refuse")
        elif deny:
            rules.append(f"{wanted} @deny-{slot} jump refuse")
        return rules

    def _steer(self, slot: int, policy: EgressPolicy, allow: list[str]) -> list[str]:
        """Accept means: not steered. What is refused then is refused at once."""
        host, names = self.host_address, policy.names
        rules = []
        if names is not Names.ALL and allow:
            # Whoever may speak to a server may ask it; the answer is our resolver's all the same.
            rules.append(f"{DNS} ip daddr @allow-{slot} dnat ip to {host}")
        if names is Names.ALLOWED or (names is Names.ALL and policy.dns_servers):
            rules.append(f"{DNS} dnat ip to {host}:{GATE_DNS_PORT}")
        if names is Names.NONE:
            rules.append(f"{DNS} accept")
        if policy.domains or policy.sees_all:
            rules += [
                "fib daddr type != unicast accept",
                f"ip daddr {{ {', '.join(self.never)} }} accept",
                f"ip daddr {self.slot_network} accept",
                *self._gated(slot, policy, allow),
            ]
        return rules

    def _gated(self, slot: int, policy: EgressPolicy, allow: list[str]) -> list[str]:
        """What ends at the gate of all that is on the internet.

        What addresses allow is looked into only to intercept or to record: then all goes there
        that is not refused anyway.
        """
        to_gate = f"meta l4proto tcp dnat ip to {self.host_address}:{GATE_PORT}"
        allowed = [f"ip daddr @allow-{slot}"] if allow else []
        if not policy.sees_all:
            return [*(f"{match} accept" for match in allowed), to_gate]
        if policy.domains:
            return [to_gate]
        if policy.denies_everything:
            return [f"{match} {to_gate}" for match in allowed]
        denied = [f"ip daddr @deny-{slot} accept"] if policy.deny else []
        return [*(f"{match} {to_gate}" for match in allowed), *denied, to_gate]


_NETWORKS = "{ type ipv4_addr; flags interval; }"
