"""Network settings of a create request: what they mean, and which this version can keep.

A setting that makes a sandbox safer is never accepted and ignored: what cannot be enforced yet is
refused (contract e2b 2.5).
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Any

from alcove.control.errors import InvalidRequestError

ALL_TRAFFIC = "0.0.0.0/0"
_DOMAINS_NEED_DENY = (
    "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out to "
    "block all other traffic."
)
_MASK = re.compile(r"[A-Za-z0-9._\[\]:-]+\Z")
_MAX_MASK_LENGTH = 253


@dataclass(frozen=True, slots=True)
class Network:
    internet: bool
    """Whether the sandbox may reach the internet."""
    public_traffic: bool
    given: dict[str, Any]
    """What the client gave and we keep, in the names of the wire."""


def read_network(network: dict[str, Any] | None, allow_internet_access: bool | None) -> Network:
    """Raises InvalidRequestError for what is malformed and for what this version cannot do."""
    given = {name: value for name, value in (network or {}).items() if value is not None}
    allow = given.get("allowOut") or []
    deny = given.get("denyOut") or []
    _check_rules(allow, deny)
    for name in ("rules", "egressProxy", "dnsServers", "httpsPorts"):
        # dnsServers: [] means "none", which is a restriction too.
        if given.get(name) or (name == "dnsServers" and name in given):
            raise _not_yet(name)
    if allow:
        raise _not_yet("allowOut")
    if deny and ALL_TRAFFIC not in deny:
        raise _not_yet("denyOut (other than all traffic)")
    mask = given.get("maskRequestHost")
    if mask is not None:
        _check_mask(mask)
    return Network(
        internet=allow_internet_access is not False and not deny,
        public_traffic=given.get("allowPublicTraffic", True),
        given=given,
    )


def _check_rules(allow: list[str], deny: list[str]) -> None:
    for rule in deny:
        if not _is_network(rule):
            raise InvalidRequestError(
                f"denyOut: '{rule[:80]}' is not an IP address or a CIDR block; domains cannot be "
                "denied"
            )
    if any(not _is_network(rule) for rule in allow) and ALL_TRAFFIC not in deny:
        raise InvalidRequestError(_DOMAINS_NEED_DENY)


def _check_mask(mask: str) -> None:
    plain = mask.replace("${PORT}", "0")
    if len(mask) > _MAX_MASK_LENGTH or _MASK.match(plain) is None:
        raise InvalidRequestError(
            "maskRequestHost must be a host name, optionally with a port; ${PORT} stands for the "
            "port of the request"
        )


def _is_network(rule: str) -> bool:
    try:
        ipaddress.ip_network(rule, strict=False)
    except ValueError:
        return False
    return True


def _not_yet(name: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"network.{name} is not available in this version and would not be enforced; "
        "leave it out, or use allow_internet_access=false to block all outgoing traffic"
    )
