"""Volumes of a place: each a mount below a directory that its sandbox sees from the beginning.

    <data>/volumes/<id>/files  --bind-->  <slot directory>/disk/volumes/<id>

The disk is a shared mount, and the sandbox's gofer has a slave of it: what is mounted here appears
there, also while the guest runs, and goes when it is unmounted. A volume that is no more leaves an
empty directory: a snapshot in which it was mounted can only be restored where there is something.
"""

import contextlib
from pathlib import Path

from alcove.node.drivers.driver import Place
from alcove.node.run import run
from alcove.wire.ids import VolumeId


class BindMounts:
    """For a real driver; needs root."""

    async def attach(self, place: Place, volume_id: VolumeId, files: Path | None) -> None:
        """Have the volume in the place, or an empty directory; may be repeated."""
        point = place.volumes / volume_id
        point.mkdir(mode=0o700, parents=True, exist_ok=True)
        if files is not None and not point.is_mount():
            await run(["mount", "--bind", str(files), str(point)])

    async def detach(self, place: Place, volume_id: VolumeId) -> None:
        """Take it away; what the guest has open it keeps until it closes it. May be repeated."""
        point = place.volumes / volume_id
        if point.is_mount():
            await run(["umount", "--lazy", str(point)])


class NoMounts:
    """For the fake driver, whose guests have no files."""

    async def attach(self, place: Place, volume_id: VolumeId, files: Path | None) -> None:
        (place.volumes / volume_id).mkdir(parents=True, exist_ok=True)
        del files

    async def detach(self, place: Place, volume_id: VolumeId) -> None:
        with contextlib.suppress(FileNotFoundError):
            (place.volumes / volume_id).rmdir()
