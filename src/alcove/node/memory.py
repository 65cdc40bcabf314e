"""How much memory there is, and about how much a sandbox will take."""

from pathlib import Path

from alcove.node.drivers.driver import Image


def snapshot_mib(image: Image) -> int:
    """About the memory of what is restored from it: a snapshot has the pages that were in use."""
    if image.snapshot is None:
        return 0
    files = (path.stat() for path in image.snapshot.glob("*"))
    return sum(512 * each.st_blocks for each in files) // 2**20


def memory_available_mib() -> int:
    """What the kernel says a new workload could have without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    return 0
