"""The machine itself: who we are, kernel, cgroups, disks, memory, programs, Python."""

import asyncio
import os
import platform
import re
import shutil
import sys
import tempfile
from pathlib import Path

from alcove.cli.checks.finding import Check, Finding, fail, ok, warn
from alcove.cli.installation import Installation
from alcove.node import disks
from alcove.node.run import CommandError

_PYTHON_MIN = (3, 11)
_KERNEL_MIN = (5, 16)
_ARCHITECTURES = {"x86_64", "aarch64"}
_CONTROLLERS = {"cpu", "memory", "pids"}
_CGROUPS = Path("/sys/fs/cgroup")
_GIB = 1 << 30
_DISK_FAIL_BYTES, _DISK_WARN_BYTES = 3 * _GIB, 10 * _GIB
_MEMORY_FAIL_KIB, _MEMORY_WARN_KIB = 768 << 10, 2 << 20
_PROGRAMS = {
    "ip": "iproute2",
    "nft": "nftables",
    "mkfs.ext4": "e2fsprogs",
    "mount": "mount",
    "dnsmasq": "dnsmasq-base",
}
_PROBE_DISK_MIB = 16


def root(_: Installation) -> Finding:
    if os.geteuid() == 0:
        return ok("root", "yes")
    return fail("root", "not root: namespaces, cgroups and nftables need it", "use sudo")


def python(_: Installation) -> Finding:
    version = platform.python_version()
    if sys.version_info >= _PYTHON_MIN:
        return ok("python", version)
    return fail("python", version, "install Python 3.11 or later and run bin/up again")


def kernel(_: Installation) -> Finding:
    release, architecture = platform.release(), platform.machine()
    what = f"Linux {release} {architecture}"
    if architecture not in _ARCHITECTURES:
        return fail("kernel", what, "gVisor runs on x86_64 and aarch64 machines only")
    if _numbers(release) < _KERNEL_MIN:
        return fail("kernel", what, "Linux 5.16 or later is needed (egress hooks of nftables)")
    return ok("kernel", what)


def cgroups(_: Installation) -> Finding:
    unified = _CGROUPS / "cgroup.controllers"
    if unified.exists():
        version, found = 2, set(unified.read_text().split())
    else:
        version, found = 1, {path.name for path in _CGROUPS.iterdir() if (path / "tasks").exists()}
    missing = ", ".join(sorted(_CONTROLLERS - found))
    if not missing:
        return ok("cgroups", f"version {version}, with cpu, memory and pids")
    fix = "boot a kernel with them, without cgroup_disable= on its command line"
    return fail("cgroups", f"version {version}, without {missing}: no limits", fix)


def programs(_: Installation) -> Finding:
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_path()) is None]
    if not missing:
        return ok("programs", ", ".join(_PROGRAMS))
    packages = " ".join(_PROGRAMS[name] for name in missing)
    return fail("programs", f"missing: {', '.join(missing)}", f"apt-get install {packages}")


def sandbox_disks(_: Installation) -> Finding:
    """A disk is really made: loop devices are missing in some containers."""

    async def try_one(directory: Path) -> None:
        try:
            await disks.create(directory, _PROBE_DISK_MIB)
        finally:
            await disks.remove(directory)

    with tempfile.TemporaryDirectory(prefix="alcove-doctor-") as directory:
        try:
            asyncio.run(try_one(Path(directory)))
        except (CommandError, OSError) as error:
            fix = "allow loop devices and ext4 (modprobe loop ext4; in a container: privileged)"
            return fail("sandbox disks", f"ext4 through a loop device: {error}", fix)
    return ok("sandbox disks", "ext4 through a loop device, tried")


def disk_space(installation: Installation) -> Finding:
    directory = installation.data_dir
    while not directory.exists():
        directory = directory.parent
    stat = os.statvfs(directory)
    free = stat.f_bavail * stat.f_frsize
    what = f"{free / _GIB:.1f} GiB free for {installation.data_dir}"
    fix = "free some, or choose another --data-dir"
    if free < _DISK_FAIL_BYTES:
        return fail("disk space", what, fix)
    return warn("disk space", what, fix) if free < _DISK_WARN_BYTES else ok("disk space", what)


def memory(_: Installation) -> Finding:
    text = Path("/proc/meminfo").read_text()
    kib = {name: int(value) for name, value in re.findall(r"(\w+):\s+(\d+) kB", text)}
    available = kib["MemAvailable"]
    what = f"{available / (1 << 20):.1f} of {kib['MemTotal'] / (1 << 20):.1f} GiB available"
    fix = "a sandbox of the base template needs 512 MiB: end other programs or add memory"
    if available < _MEMORY_FAIL_KIB:
        return fail("memory", what, fix)
    return warn("memory", what, fix) if available < _MEMORY_WARN_KIB else ok("memory", what)


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", release)[:2])


def _path() -> str:
    """Where root's programs are, even if the caller's PATH leaves them out."""
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


CHECKS = (
    Check("root", root),
    Check("python", python),
    Check("kernel", kernel),
    Check("cgroups", cgroups),
    Check("programs", programs),
    Check("sandbox disks", sandbox_disks, needs_root=True),
    Check("disk space", disk_space),
    Check("memory", memory),
)
