"""`network.egressProxy`: the SOCKS5 proxy all TCP of a sandbox goes through (contract e2b 2.5).

Its password is sealed in the row, opened for the node that runs the sandbox, and shown to nobody.
"""

import base64
import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from alcove.control.errors import InvalidRequestError
from alcove.control.secrets.sealing import CannotOpenError, Sealer
from alcove.wire.egress import REFUSED_NETWORKS, Proxy

_MAX_CREDENTIAL_BYTES = 255
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"({_LABEL}\.)*{_LABEL}\Z")
_NEVER = [IPv4Network(network) for network in REFUSED_NETWORKS]
_SEAL = ("egress proxy", 1)
_FIELD = "egressProxy"


def read_proxy(given: Mapping[str, Any] | None) -> Proxy | None:
    """Raises InvalidRequestError for what cannot be used. A sealed password is read as none."""
    if not given:
        return None
    if (given.get("tls") or {}).get("enabled"):
        raise InvalidRequestError("egressProxy.tls is not available in this version; leave it out")
    host, port = _address(given.get("address"))
    username, password = given.get("username") or "", given.get("password") or ""
    if password and not username:
        raise InvalidRequestError("egressProxy.password requires a username")
    if isinstance(password, dict):
        password = ""
    for name, text in (("username", username), ("password", password)):
        if not isinstance(text, str) or len(text.encode()) > _MAX_CREDENTIAL_BYTES:
            raise InvalidRequestError(
                f"egressProxy.{name} must be a text of at most {_MAX_CREDENTIAL_BYTES} bytes"
            )
    return Proxy(host, port, username, password)


def sealed(network: Mapping[str, Any], sealer: Sealer) -> dict[str, Any]:
    """The settings as they are stored."""
    proxy = network.get(_FIELD)
    if not proxy or not isinstance(proxy.get("password"), str):
        return dict(network)
    seal = base64.b64encode(sealer.seal(proxy["password"], *_SEAL)).decode()
    return {**network, _FIELD: {**proxy, "password": {"sealed": seal}}}


def opened(network: Mapping[str, Any], sealer: Sealer) -> dict[str, Any]:
    """The settings as their owner gave them; a password that cannot be opened is none."""
    proxy = network.get(_FIELD)
    if not proxy or not isinstance(proxy.get("password"), dict):
        return dict(network)
    try:
        password = sealer.open(base64.b64decode(proxy["password"]["sealed"]), *_SEAL)
    except (CannotOpenError, ValueError, KeyError):
        password = ""
    return {**network, _FIELD: {**proxy, "password": password}}


def shown(network: Mapping[str, Any]) -> dict[str, Any]:
    """The settings for everybody's eyes."""
    proxy = network.get(_FIELD)
    if not proxy:
        return dict(network)
    kept = {name: value for name, value in proxy.items() if name != "password"}
    return {**network, _FIELD: kept}


def _address(given: Any) -> tuple[str, int]:
    host, _, port = given.rpartition(":") if isinstance(given, str) else ("", "", "")
    if not (port.isascii() and port.isdecimal() and 1 <= int(port[:6]) <= 65535):
        raise InvalidRequestError("egressProxy.address must be 'host:port'")
    try:
        address = IPv4Address(host)
    except ValueError:
        if len(host) > 253 or _HOST.match(host) is None or host[-1].isdecimal():
            raise InvalidRequestError(
                "egressProxy.address must name an IPv4 address or a domain, and a port"
            ) from None
        if host.lower() == "localhost" or host.lower().endswith(".localhost"):
            raise _private(host) from None
    else:
        if any(address in network for network in _NEVER):
            raise _private(host)
    return host.lower(), int(port)


def _private(host: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"egressProxy.address: '{host}' is private or reserved; no sandbox can reach it"
    )
