"""Floors of time travel: a snapshot that Alcove took, restored and saved again by runsc alone."""

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from alcove.cli.bench import floor
from alcove.cli.bench.series import Series
from alcove.cli.installation import Installation
from alcove.node.drivers import runsc
from alcove.node.drivers.driver import Image, Place
from alcove.node.run import run

AT_ONCE = 4
"""How many raw restores run beside each other, as on the node."""


def image_of(installation: Installation, snapshot_id: str) -> Image:
    """What a raw restore needs of a snapshot of a sandbox of the base template."""
    snapshot = installation.data_dir / "snapshots" / snapshot_id / "data"
    return replace(floor.base_image(installation), snapshot=snapshot)


class SnapshotFloors:
    """Series of raw restores and checkpoints of snapshots of one kind."""

    def __init__(self, kind: str) -> None:
        self.restore = Series(
            f"floor: runsc restore, {kind}", "ms", note="of the same snapshot, to GET /health"
        )
        self.checkpoint = Series(
            f"floor: runsc checkpoint, {kind}", "ms", note="of what was restored; not on disk yet"
        )
        self.on_disk = Series(f"floor: checkpoint and fsync, {kind}", "ms")

    async def measure(self, image: Image, scratch: Path) -> None:
        """One restore and one checkpoint; files go to `scratch`, as they do on the node."""
        async with (
            floor.prepared_ground() as ground,
            floor.prepared_place(ground, 1, image) as place,
        ):
            await floor.timed(self.restore, floor.restored(place, image))
            with tempfile.TemporaryDirectory(prefix=".bench.", dir=scratch) as into:
                started = time.perf_counter()
                await floor.timed(self.checkpoint, _checkpointed(place, Path(into)))
                _sync(Path(into))
                self.on_disk.values.append((time.perf_counter() - started) * 1000)


def restores(count: int) -> Series:
    """For the wall times of so many raw restores."""
    note = f"to GET /health of all, {AT_ONCE} at once"
    return Series(f"floor: {count} x runsc restore", "ms", note=note)


async def restore_many(image: Image, count: int, wall: Series) -> None:
    """One wall time of so many raw restores of one snapshot, AT_ONCE beside each other."""
    each = Series("each", "ms")
    async with contextlib.AsyncExitStack() as stack:
        ground = await stack.enter_async_context(floor.prepared_ground())
        places = [
            await stack.enter_async_context(floor.prepared_place(ground, slot, image))
            for slot in range(1, count + 1)
        ]
        turn = asyncio.Semaphore(AT_ONCE)

        async def one(place: Place) -> None:
            async with turn:
                await floor.timed(each, floor.restored(place, image))

        started = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for place in places:
                tasks.create_task(one(place))
        if each.failures:
            wall.failures.append(each.failures[0])
        else:
            wall.values.append((time.perf_counter() - started) * 1000)


async def _checkpointed(place: Place, into: Path) -> AsyncIterator[None]:
    options = ("--leave-running", "--compression=none", f"--image-path={into}")
    await run(["runsc", *runsc.flags(place), "checkpoint", *options, place.name], timeout_s=120)
    yield


def _sync(directory: Path) -> None:
    for file in directory.iterdir():
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
