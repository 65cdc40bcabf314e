"""What this machine's way to the internet is like: its device, MTU, address and extra CAs."""

import re
import socket
import ssl
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import structlog

_log = structlog.get_logger()

_ETHERNET_MTU = 1500
_ROUTES = Path("/proc/net/route")
_DEVICES = Path("/sys/class/net")
_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
_ADDED = Path("/usr/local/share/ca-certificates")
_PACKAGED = Path("/usr/share/ca-certificates")
_CERTIFICATE = re.compile(
    r"-----BEGIN CERTIFICATE-----\s[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----"
)
_ROUTE_IS_UP = 1
_ANYWHERE = "192.0.2.1"
"""No packet is sent: connecting a datagram socket only asks the routing table."""


class NoUplinkError(Exception):
    """The machine has no IPv4 default route."""


@dataclass(frozen=True, slots=True)
class Uplink:
    device: str
    mtu: int
    address: IPv4Address


def mtu() -> int:
    """Of the device of the default route; Ethernet's if there is none."""
    try:
        return uplink().mtu
    except NoUplinkError as error:
        _log.warning("node.no_uplink", error=str(error))
        return _ETHERNET_MTU


def uplink() -> Uplink:
    """The device of the default route with the lowest metric. Raises NoUplinkError."""
    routes = []
    for line in _ROUTES.read_text().splitlines()[1:]:
        device, destination, _, flags, _, _, metric, mask, *_ = line.split()
        if (destination, mask) == ("00000000", "00000000") and int(flags, 16) & _ROUTE_IS_UP:
            routes.append((int(metric), device))
    if not routes:
        raise NoUplinkError("no IPv4 default route: sandboxes would have no internet")
    device = min(routes)[1]
    mtu = int((_DEVICES / device / "mtu").read_text())
    return Uplink(device, mtu, _address())


def extra_ca_pem() -> str:
    """Certificates this machine trusts that its distribution did not bring, as PEM; may be empty.

    Machines behind a gateway that inspects TLS have some; sandboxes need them as well.
    """
    return extra_certificates(_BUNDLE, _ADDED, _PACKAGED)


def extra_certificates(bundle: Path, added: Path, packaged: Path) -> str:
    ordinary = {der for path in packaged.rglob("*.crt") for der in _certificates(path)}
    extra: dict[bytes, str] = {}
    # Without the distribution's list there is no telling what in the bundle was added.
    for path in [*sorted(added.rglob("*.crt")), *([bundle] if ordinary else [])]:
        for der, pem in _certificates(path).items():
            if der not in ordinary:
                extra.setdefault(der, pem)
    return "".join(pem + "\n" for pem in extra.values())


def _certificates(path: Path) -> dict[bytes, str]:
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return {}
    found = {}
    for pem in _CERTIFICATE.findall(text):
        try:
            found[ssl.PEM_cert_to_DER_cert(pem)] = pem
        except ValueError:
            continue
    return found


def _address() -> IPv4Address:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((_ANYWHERE, 9))
        return IPv4Address(probe.getsockname()[0])
