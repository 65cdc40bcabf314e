"""Size-limited disks: a sparse ext4 file per slot, mounted through a loop device.

    <slot directory>/disk.img  --loop-->  <slot directory>/disk

No journal: the content dies with the sandbox, and after a loss of power there is no sandbox to give
it back to. Blocks freed inside are freed in the file as well (discard).
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from alcove.node.run import run

_IMAGE = "disk.img"
_MOUNT = "disk"
_FORMAT = [
    "mkfs.ext4",
    "-q",
    "-F",
    "-O",
    "^has_journal,^resize_inode",
    "-E",
    "lazy_itable_init=1,nodiscard,root_owner=0:0",
    "-m",
    "0",
]
# Not noexec: the application kernel maps the sandbox's programs from here.
_MOUNT_OPTIONS = "loop,nodev,nosuid,noatime,discard"
# Positions in /sys/dev/block/*/stat.
_SECTORS_READ, _SECTORS_WRITTEN = 2, 6
_SECTOR_BYTES = 512
_OCTAL_ESCAPES = {"\\040": " ", "\\011": "\t", "\\012": "\n", "\\134": "\\"}


@dataclass(frozen=True, slots=True)
class DiskUsage:
    used_bytes: int
    total_bytes: int


async def create(slot_directory: Path, size_mib: int) -> Path:
    """Make an empty disk and mount it; one that was there is replaced. Returns the mount point."""
    await remove(slot_directory)
    image, mount_point = slot_directory / _IMAGE, slot_directory / _MOUNT
    _lay_out(image, mount_point, size_mib)
    await run([*_FORMAT, str(image)])
    # Shared: a volume that is mounted below it appears to the sandbox too (volumes/attaching.py).
    options = ["--make-shared", "-t", "ext4", "-o", _MOUNT_OPTIONS]
    await run(["mount", *options, str(image), str(mount_point)])
    (mount_point / "lost+found").rmdir()
    return mount_point


async def remove(slot_directory: Path) -> None:
    """Unmount and delete the disk, if there is one, with what was mounted on it.

    Raises CommandError while it is in use.
    """
    for mount_point in reversed(mounted(slot_directory)):
        await run(["umount", str(mount_point)])
    _delete(slot_directory)


def usage(slot_directory: Path) -> DiskUsage:
    stat = os.statvfs(slot_directory / _MOUNT)
    total = stat.f_blocks * stat.f_frsize
    return DiskUsage(total - stat.f_bfree * stat.f_frsize, total)


def transferred_bytes(slot_directory: Path) -> int:
    """Read from and written to the disk, counted from some moment before it was mounted."""
    device = (slot_directory / _MOUNT).stat().st_dev
    numbers = f"{os.major(device)}:{os.minor(device)}"
    fields = (Path("/sys/dev/block") / numbers / "stat").read_text().split()
    return (int(fields[_SECTORS_READ]) + int(fields[_SECTORS_WRITTEN])) * _SECTOR_BYTES


def mounted(under: Path) -> list[Path]:
    """Mount points anywhere under a directory, in the order of mounting."""
    directory = under.resolve()
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount_point = line.split(" ")[4]
        for escape, character in _OCTAL_ESCAPES.items():
            mount_point = mount_point.replace(escape, character)
        path = Path(mount_point)
        if path.is_relative_to(directory):
            found.append(path)
    return found


def _lay_out(image: Path, mount_point: Path, size_mib: int) -> None:
    mount_point.mkdir(mode=0o700, parents=True, exist_ok=True)
    with image.open("wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.truncate(size_mib << 20)


def _delete(slot_directory: Path) -> None:
    (slot_directory / _IMAGE).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        (slot_directory / _MOUNT).rmdir()
