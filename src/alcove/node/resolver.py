"""The resolver of sandboxes: one dnsmasq on the address that guests know as their gateway."""

from ipaddress import IPv4Address
from pathlib import Path

from alcove.node.daemons import Daemon, pid_file_argument
from alcove.wire.egress import REFUSED_NETWORKS

_CACHED_NAMES = 10_000
_QUERIES_IN_FLIGHT = 1_000
_TCP_CONNECTIONS = 200


class Resolver(Daemon):
    """One dnsmasq serving on `address`, with its files in `directory`."""

    def __init__(
        self, address: IPv4Address, directory: Path, upstream: Path = Path("/etc/resolv.conf")
    ) -> None:
        pid_file = directory / "resolver.pid"
        argv = [
            "dnsmasq",
            "--conf-file=/dev/null",
            pid_file_argument(pid_file),
            "--user=nobody",
            "--group=nogroup",
            # A warning per odd query would let guests fill the disk.
            "--log-facility=/dev/null",
            "--bind-interfaces",
            f"--listen-address={address}",
            "--no-hosts",
            "--no-ident",
            f"--resolv-file={upstream}",
            "--domain-needed",
            "--bogus-priv",
            # Sandboxes have no IPv6: its addresses would only cost them failed connections.
            "--filter-AAAA",
            f"--cache-size={_CACHED_NAMES}",
            f"--dns-forward-max={_QUERIES_IN_FLIGHT}",
            f"--max-tcp-connections={_TCP_CONNECTIONS}",
            # Names that lead where no sandbox may go do not exist (DNS rebinding). The built-in
            # --stop-dns-rebind also hides the documentation networks, which some hosts use.
            *(f"--bogus-nxdomain={network}" for network in REFUSED_NETWORKS),
        ]
        super().__init__("resolver", argv, pid_file, "dnsmasq")
