"""Places, images and a small guest for driver tests, made with nothing but the kernel's tools."""

import contextlib
import os
import shutil
import subprocess
import zipapp
from collections.abc import Iterator
from pathlib import Path

from alcove.node.cgroups import Cgroup
from alcove.node.drivers.driver import Image, Place

SLOT = int(os.environ.get("ALCOVE_TEST_SLOT", "0"))
INSTANCE = f"nd{'abcdefghij'[SLOT]}"
NOWHERE = "203.0.113.1"
"""Packets to this address are lost before this machine has noticed them."""
VOID = "203.0.113.2"
"""Packets to this address leave this machine and are lost, inside void()."""
HERE = Path(__file__).parent


def make_place(root: Path, slot: int) -> Place:
    """Network namespace, veth pair, addresses rewritten at the host's end, and directories."""
    name = f"{INSTANCE}-{slot}"
    address = f"10.{(236 if SLOT == 0 else 210 + SLOT)}.{slot >> 8}.{slot & 255}"
    directory = root / "slots" / str(slot)
    place = Place(
        slot=slot,
        name=name,
        directory=directory,
        netns=Path("/run/netns") / name,
        veth=f"{INSTANCE}{slot}",
        address=address,
        cgroup=f"{INSTANCE}/{slot}",
        disk=directory / "disk",
        console=directory / "console.log",
    )
    directory.mkdir(parents=True)
    drop_network(place)
    _ip(
        f"netns add {name}",
        f"link add {place.veth} mtu 1400 type veth peer name eth0 netns {name} mtu 1400",
        f"link set {place.veth} up",
        f"addr add 169.254.0.22/32 dev {place.veth}",
        f"route add {address}/32 dev {place.veth} src 169.254.0.22",
    )
    mac = _in_netns(name, "cat", "/sys/class/net/eth0/address").strip()
    host_mac = Path(f"/sys/class/net/{place.veth}/address").read_text().strip()
    _ip(f"neigh replace {address} lladdr {mac} dev {place.veth} nud permanent")
    for argument in (
        "link set lo up",
        "link set eth0 up",
        "addr add 169.254.0.21/30 dev eth0",
        "route add default via 169.254.0.22",
        f"neigh replace 169.254.0.22 lladdr {host_mac} dev eth0 nud permanent",
    ):
        _in_netns(name, "ip", *argument.split())
    rules = f"""
        table netdev {place.veth} {{
            chain in {{
                type filter hook ingress device {place.veth} priority 0;
                ip daddr {NOWHERE} drop
                ip saddr 169.254.0.21 ip saddr set {address}
            }}
            chain out {{
                type filter hook egress device {place.veth} priority 0;
                ip daddr {address} ip daddr set 169.254.0.21
            }}
        }}"""
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    return place


def drop_network(place: Place) -> None:
    for argv in (
        ["nft", "delete", "table", "netdev", place.veth],
        ["ip", "netns", "delete", place.name],
        ["ip", "link", "delete", place.veth],
    ):
        subprocess.run(argv, capture_output=True)


async def drop_place(place: Place) -> None:
    await Cgroup(place.cgroup).remove()
    drop_network(place)
    shutil.rmtree(place.directory)


@contextlib.contextmanager
def void() -> Iterator[None]:
    """A device that loses what it is given, and a kernel that follows connections."""
    device, table = f"{INSTANCE}void", f"inet {INSTANCE}void"
    forwarding = Path("/proc/sys/net/ipv4/ip_forward")
    before = forwarding.read_text()
    forwarding.write_text("1")
    rules = f"""
        table {table} {{
            chain forward {{
                type filter hook forward priority 0;
                ct state invalid counter
            }}
        }}"""
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    try:
        _ip(
            f"link add {device} type veth peer name {device}-end",
            f"link set {device} up",
            f"link set {device}-end up",
            f"route add {VOID}/32 dev {device}",
            f"neigh add {VOID} lladdr 02:00:00:00:00:01 dev {device} nud permanent",
        )
        yield
    finally:
        subprocess.run(["ip", "link", "delete", device], capture_output=True)
        subprocess.run(["nft", "delete", "table", *table.split()], check=True)
        forwarding.write_text(before)


def make_rootfs(root: Path) -> Path:
    rootfs = root / "rootfs"
    for name in ("proc", "dev", "sys", "tmp", ".alcove", "bin", "etc", "root"):
        (rootfs / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", rootfs / "bin")
    for name in ("sh", "mount", "cat", "df", "free", "nproc", "hostname", "dd", "wget"):
        (rootfs / "bin" / name).symlink_to("busybox")
    return rootfs


def make_agent(root: Path, bundle: Path) -> Path:
    """A guest bundle with the interpreter of a real one and the probe guest as its program."""
    agent = root / "probe-agent"
    shutil.copytree(bundle, agent, symlinks=True)
    source = root / "probe"
    source.mkdir()
    shutil.copy(HERE / "probe_guest.py", source / "__main__.py")
    zipapp.create_archive(source, agent / "guest.pyz")
    return agent


def make_image(rootfs: Path, agent: Path, snapshot: Path | None = None) -> Image:
    return Image("test", rootfs, agent, snapshot, vcpu_count=2, memory_mib=512)


def _ip(*commands: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True)


def _in_netns(name: str, *argv: str) -> str:
    return subprocess.run(
        ["ip", "netns", "exec", name, *argv], check=True, capture_output=True, text=True
    ).stdout
