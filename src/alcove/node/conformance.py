"""The conformance kit on this machine (`alcove node check`), in places made for it.

The guest is the real agent in an image without a file: any driver can boot that.
"""

import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path

from alcove.node.drivers.check import Result, check
from alcove.node.drivers.driver import Driver, Image, Place
from alcove.node.ground import Ground, Size
from alcove.node.settings import Settings

_SIZE = Size(vcpu_count=1, memory_mib=256, disk_mib=256)


def apart(settings: Settings) -> Settings:
    """The same node with names and files of its own, so that it meets nothing of the real one."""
    directory = settings.data_dir.absolute() / "check"
    digest = hashlib.sha256(bytes(directory)).hexdigest()[:6]
    return settings.model_copy(update={"data_dir": directory, "instance": f"ck{digest}"})


async def run(
    new_driver: Callable[[], Driver], ground: Ground, agent: Path, directory: Path
) -> list[Result]:
    """Try every promise; the places are taken back, what is in `directory` stays."""
    rootfs, snapshots = directory / "rootfs", directory / "snapshots"
    for made in (rootfs, snapshots):
        made.mkdir(exist_ok=True)
    numbers = itertools.count(1)

    async def make_place() -> Place:
        place = ground.place(next(numbers))
        await ground.make(place, _SIZE)
        return place

    image = Image("check", rootfs, agent, None, _SIZE.vcpu_count, _SIZE.memory_mib)
    return await check(new_driver, make_place, ground.remove, image, snapshots)
