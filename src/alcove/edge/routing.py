"""Whom a request is for, read from its head alone (contract e2b 5.1, 5.4).

A Host that names a sandbox always wins. The routing headers count only where Host names none: on
localhost, an IP address, `sandbox.*` and the hosts of the settings. Otherwise a page of one sandbox
could send requests to another.
"""

import ipaddress
import re
from dataclasses import dataclass, field
from enum import Enum, auto
from urllib.parse import unquote_to_bytes

from alcove.edge.errors import BadRouteError, InternalRouteError
from alcove.edge.heads import RequestHead
from alcove.wire.hosts import (
    GUEST_PORT,
    INTERNAL_ROUTES,
    InvalidHostError,
    PortOfSandbox,
    parse_host,
    parse_port_and_id,
)

_ID_HEADER, _PORT_HEADER = b"e2b-sandbox-id", b"e2b-sandbox-port"

_INTERNAL_OF_GUEST = frozenset(name.encode() for name in INTERNAL_ROUTES)
_INTERNAL_OF_CONTROL = frozenset({b"internal"})
_MAX_DECODINGS = 8
_SEPARATORS = re.compile(rb"[/\\;]")
_NOISE = bytes(range(0x21)) + b"\x7f."


class Own(Enum):
    """Requests for the edge itself."""

    HEALTH = auto()


class Api(Enum):
    """Requests for control."""

    CONTROL = auto()


Target = PortOfSandbox | Own | Api


@dataclass(frozen=True, slots=True)
class Router:
    api_host: str
    """Requests with this Host go to control."""
    header_hosts: frozenset[str] = field(default_factory=frozenset)
    """Further hosts on which the routing headers count."""

    def resolve(self, head: RequestHead) -> Target:
        """Raises BadRouteError or InternalRouteError."""
        target = self._target(head)
        path = head.target.partition(b"?")[0]
        if target is Api.CONTROL:
            # Guarded by control's cluster token as well. Only the first name counts: further ones
            # are the users' own.
            _refuse_internal(path, _INTERNAL_OF_CONTROL, segments=1)
        elif isinstance(target, PortOfSandbox) and target.port == GUEST_PORT:
            _refuse_internal(path, _INTERNAL_OF_GUEST)
            # The guest speaks no other protocol. Were one agreed on (h2c), its requests would
            # pass unseen behind the check above.
            head.without_upgrade()
        return target

    def _target(self, head: RequestHead) -> Target:
        name = _name_of(head.host)
        sandbox_id, port = head.get(_ID_HEADER), head.get(_PORT_HEADER)
        try:
            if self._headers_count(name):
                if sandbox_id is not None and port is not None:
                    return parse_port_and_id(port, sandbox_id)
                if sandbox_id is not None or port is not None:
                    raise BadRouteError("missing header")
                if _is_health(head):
                    return Own.HEALTH
                raise BadRouteError("missing header: E2b-Sandbox-Id and E2b-Sandbox-Port")
            if name == self.api_host:
                return Api.CONTROL
            return parse_host(name)
        except InvalidHostError as error:
            if sandbox_id is None and port is None and _is_health(head) and not _has_form(name):
                return Own.HEALTH
            raise BadRouteError(str(error)) from error

    def _headers_count(self, name: str) -> bool:
        return (
            name == "localhost"
            or name in self.header_hosts
            or name.startswith("sandbox.")
            or _is_address(name)
        )


def _name_of(host: str) -> str:
    """The Host header without its port, in lower case; brackets of IPv6 stay."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].lower().removesuffix(".")


def _is_address(name: str) -> bool:
    if not (name.startswith("[") or name[:1].isdigit()):
        return False
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _is_health(head: RequestHead) -> bool:
    return head.target == b"/health" and head.method in {b"GET", b"HEAD"}


def _has_form(name: str) -> bool:
    """Whether the host tries to name a port of a sandbox."""
    return "-" in name.partition(".")[0]


def _refuse_internal(path: bytes, internal: frozenset[bytes], segments: int | None = None) -> None:
    """Refuse a path that any reading of it, by any server, could take for an internal route."""
    decoded = path
    for _ in range(_MAX_DECODINGS):
        names = map(_bare, _SEPARATORS.split(decoded.partition(b"#")[0]))
        if internal.intersection(list(filter(None, names))[:segments]):
            raise InternalRouteError(path.decode("latin-1"))
        further = unquote_to_bytes(decoded)
        if further == decoded:
            return
        decoded = further
    raise InternalRouteError(path.decode("latin-1"))


def _bare(segment: bytes) -> bytes:
    return segment.strip(_NOISE).lower()
