"""Names looked up for sandboxes, by dnspython: at the node's resolver or at servers of their own.

What leads where no sandbox may go is no answer (DNS rebinding).
"""

import socket
from ipaddress import IPv4Address, IPv4Network

import dns.asyncquery
import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.resolver

from alcove.wire.egress import REFUSED_NETWORKS, EgressPolicy

_NEVER = [IPv4Network(network) for network in REFUSED_NETWORKS]
_LOOKUP_S = 5.0
_QUERY_S = 3.0
_CACHED_NAMES = 2_000
_RESOLVERS = 256
_ANSWER_RECORDS = 64


class NotFoundError(Exception):
    """The name leads nowhere, or nowhere a sandbox may go."""


class Lookup:
    """Looks names up as a policy says."""

    def __init__(self, own_server: str) -> None:
        self._own_server = own_server
        self._resolvers: dict[tuple[str, ...], dns.asyncresolver.Resolver] = {}

    async def addresses(self, name: str, policy: EgressPolicy) -> list[str]:
        """Where a connection to the name may be dialled. Raises NotFoundError."""
        try:
            answer = await self._resolver(policy).resolve(
                name, "A", search=False, lifetime=_LOOKUP_S
            )
        except dns.exception.DNSException as error:
            raise NotFoundError(f"{name} could not be looked up: {error}") from error
        found = [record.address for record in answer]
        reachable = [address for address in found[:_ANSWER_RECORDS] if may_be_reached(address)]
        if not reachable:
            raise NotFoundError(f"{name} leads to no public address")
        return reachable

    async def ask(self, query: dns.message.Message, policy: EgressPolicy) -> dns.message.Message:
        """A question of its own for what the query asks: nothing else of it goes out.

        Raises NotFoundError when no server answers.
        """
        (question,) = query.question
        answer = dns.message.make_response(query, recursion_available=True)
        if question.rdtype in _NOT_ASKED:
            return answer
        asked = dns.message.make_query(question.name, question.rdtype)
        for server in self._servers(policy):
            try:
                found, _ = await dns.asyncquery.udp_with_fallback(asked, server, timeout=_QUERY_S)
            except (dns.exception.DNSException, OSError, ValueError):
                continue
            answer.set_rcode(found.rcode())
            answer.answer = found.answer
            if any(_leads_astray(records) for records in answer.answer):
                answer.answer = []
                answer.set_rcode(dns.rcode.NXDOMAIN)
            return answer
        raise NotFoundError(f"no server answers for {question.name}")

    def _servers(self, policy: EgressPolicy) -> tuple[str, ...]:
        # Names are for the guest; without servers for it, the gate still needs some for itself.
        own = tuple(filter(may_be_reached, policy.dns_servers or ()))
        return own or (self._own_server,)

    def _resolver(self, policy: EgressPolicy) -> dns.asyncresolver.Resolver:
        servers = self._servers(policy)
        resolver = self._resolvers.get(servers)
        if resolver is None:
            resolver = dns.asyncresolver.Resolver(configure=False)
            resolver.nameservers = list(servers)
            resolver.cache = dns.resolver.LRUCache(_CACHED_NAMES)
            while len(self._resolvers) >= _RESOLVERS:
                self._resolvers.pop(next(iter(self._resolvers)))
            self._resolvers[servers] = resolver
        return resolver


_NOT_ASKED = {
    # Sandboxes have no IPv6, and service bindings bring keys that hide the server name.
    dns.rdatatype.AAAA,
    dns.rdatatype.HTTPS,
    dns.rdatatype.SVCB,
}


def may_be_reached(address: str) -> bool:
    """Whether an address is on the internet: neither private nor this host's."""
    found = IPv4Address(address)
    return not any(found in network for network in _NEVER) and not _is_ours(address)


def _is_ours(address: str) -> bool:
    """Whether a packet to the address would stay here: then it would come from there too."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError:
            return True  # broadcast, or no way there: nothing to reach
        return bool(probe.getsockname()[0] == address)


def _leads_astray(records: object) -> bool:
    addresses = [getattr(record, "address", None) for record in records]  # type: ignore[attr-defined]  # an RRset iterates; its stub says nothing
    return any(
        isinstance(address, str) and ":" not in address and not may_be_reached(address)
        for address in addresses
    )
