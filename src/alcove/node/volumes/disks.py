"""What a volume is on this machine: a file system of its own, in a sparse file.

    <data>/volumes/<id>/volume.img  --loop-->  <data>/volumes/<id>/files

The size of the file system is the quota, of bytes and of files, and the kernel keeps it: whatever a
guest does, it fills its volume and nothing else (docs/rfd/0018-volumes.md). With a journal, for it
outlives the sandboxes that write to it.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import structlog

from alcove.node.disks import mounted
from alcove.node.errors import BusyError
from alcove.node.run import CommandError, run

_log = structlog.get_logger()

_IMAGE, _FILES = "volume.img", "files"
_MAKING = "volume.making"
_INODE_BYTES, _JOURNAL_MIB = 256, 8
_FORMAT = ["mkfs.ext4", "-q", "-F", "-m", "0", "-J", f"size={_JOURNAL_MIB}"]
_LAZY = "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"
# Not noexec: programs in a volume may be run, by the application kernel. Nothing on it is more to
# the host than bytes: no devices, no set-user-ID.
_OPTIONS = "loop,nodev,nosuid,noatime,discard"
_OWN_INODES = 10
"""What ext4 needs for itself."""
_CHECK_S = 300.0
_REPAIRED = 1
"""The exit code of a check that has mended something."""


@dataclass(frozen=True, slots=True)
class Filled:
    """What is in a volume."""

    bytes: int
    inodes: int
    inodes_total: int


class LoopDisks:
    """File systems in files; needs root."""

    async def make(self, directory: Path, size_mib: int, inodes: int) -> None:
        """Make the file system; may be repeated after a crash, and takes what is whole as it is."""
        image, making = directory / _IMAGE, directory / _MAKING
        (directory / _FILES).mkdir(mode=0o700, exist_ok=True)
        if image.exists():
            return
        with making.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            # Tables and journal are not for files, and come on top of the quota.
            file.truncate(((size_mib + _JOURNAL_MIB) << 20) + inodes * _INODE_BYTES)
        argv = [*_FORMAT, "-E", _LAZY, "-N", str(inodes + _OWN_INODES), str(making)]
        await run(argv)
        making.rename(image)

    async def grow(self, directory: Path, was_mib: int, size_mib: int, inodes: int) -> None:
        """Make it larger, while it is mounted if the kernel lets us. Raises BusyError."""
        image = directory / _IMAGE
        wanted = ((size_mib + _JOURNAL_MIB) << 20) + inodes * _INODE_BYTES * size_mib // was_mib
        if image.stat().st_size < wanted:
            os.truncate(image, wanted)
        found = await run(["findmnt", "-n", "-o", "SOURCE", "-M", str(directory / _FILES)])
        device = found.stdout.strip()
        await run(["losetup", "--set-capacity", device])
        resized = await run(["resize2fs", device], check=False)
        if resized.exit_code == 0:
            return
        # Where root has not all its powers (CAP_SYS_RESOURCE), only what is not mounted grows.
        _log.info("volume.not_grown_while_mounted", why=resized.stderr.strip()[-200:])
        try:
            await run(["umount", str(directory / _FILES)])
        except CommandError as error:
            raise BusyError(
                "on this machine a volume can only be made larger while nothing uses it"
            ) from error
        if _loop_of(image):
            raise BusyError("a sandbox has the volume mounted: it can be made larger after that")
        checked = await run(["e2fsck", "-fp", str(image)], timeout_s=_CHECK_S, check=False)
        if checked.exit_code > _REPAIRED:
            raise CommandError(["e2fsck", str(image)], checked.exit_code, checked.stdout)
        await run(["resize2fs", str(image)], timeout_s=_CHECK_S)
        await self.mount(directory)

    async def mount(self, directory: Path) -> Path:
        """Where its files are; may be repeated."""
        files = directory / _FILES
        if not self.is_mounted(directory):
            await run(["mount", "-t", "ext4", "-o", _OPTIONS, str(directory / _IMAGE), str(files)])
            lost = files / "lost+found"
            if list(files.iterdir()) == [lost]:
                files.chmod(0o777)  # whoever a sandbox's user is
            with contextlib.suppress(OSError):  # none, or not empty
                lost.rmdir()
        return files

    async def unmount(self, directory: Path) -> None:
        """Unmount it, wherever it is mounted; what still has it open keeps it until it ends."""
        for point in reversed(mounted(directory)):
            await run(["umount", "--lazy", str(point)])

    def is_mounted(self, directory: Path) -> bool:
        return bool(mounted(directory))

    def filled(self, directory: Path) -> Filled:
        """Zeros while it is not mounted."""
        if not self.is_mounted(directory):
            return Filled(0, 0, 0)
        stat = os.statvfs(directory / _FILES)
        used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize
        return Filled(used, max(0, stat.f_files - stat.f_ffree - _OWN_INODES), stat.f_files)

    def in_use(self, directory: Path) -> bool:
        """Whether it is mounted anywhere else: a sandbox has it."""
        if not self.is_mounted(directory):
            return False
        device = (directory / _FILES).stat().st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return sum(line.split(" ")[2] == number for line in lines) > 1

    def stored_bytes(self, directory: Path) -> int:
        """What its file takes on the disk of this machine."""
        try:
            return (directory / _IMAGE).stat().st_blocks * 512
        except FileNotFoundError:
            return 0


class PlainDisks:
    """Directories, without a quota: for the fake driver, whose sandboxes have no guests."""

    async def make(self, directory: Path, size_mib: int, inodes: int) -> None:
        del size_mib, inodes
        (directory / _FILES).mkdir(exist_ok=True)

    async def grow(self, directory: Path, was_mib: int, size_mib: int, inodes: int) -> None:
        """A directory has no size."""

    async def mount(self, directory: Path) -> Path:
        return directory / _FILES

    async def unmount(self, directory: Path) -> None:
        """Nor a mount."""

    def filled(self, directory: Path) -> Filled:
        del directory
        return Filled(0, 0, 0)

    def stored_bytes(self, directory: Path) -> int:
        del directory
        return 0

    def in_use(self, directory: Path) -> bool:
        del directory
        return False


def _loop_of(image: Path) -> bool:
    """Whether a device still shows this file: somebody has it open or mounted elsewhere."""
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if file.read_text().strip() == str(image.resolve()):
                return True
        except OSError:
            continue  # it is being taken apart
    return False
