"""The conformance kit against every driver, fake included, with the real guest."""

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import rig
import uvloop

from alcove.node.drivers.check import check
from alcove.node.drivers.driver import Driver, Image, Place
from alcove.node.drivers.fake import FakeDriver
from alcove.node.drivers.gvisor import GvisorDriver

needs_runsc = [
    pytest.mark.root,
    pytest.mark.runsc,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("runsc") is None, reason="needs root and runsc"
    ),
]


def run_kit(
    new_driver: Callable[[], Driver],
    make_place: Callable[[], Awaitable[Place]],
    drop_place: Callable[[Place], Awaitable[None]],
    image: Image,
    scratch: Path,
) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as the node does
        results = runner.run(check(new_driver, make_place, drop_place, image, scratch))
    broken = [f"{result.name}: {result.detail}" for result in results if not result.ok]
    assert broken == []


def test_fake(tmp_path: Path) -> None:
    numbers = iter(range(1000))

    async def make_place() -> Place:
        name = f"fake-{next(numbers)}"
        directory = tmp_path / "slots" / name
        directory.mkdir(parents=True)
        return Place(
            slot=0,
            name=name,
            directory=directory,
            netns=Path(),
            veth="",
            address="",
            cgroup="",
            disk=directory / "disk",
            console=directory / "console.log",
        )

    async def drop_place(place: Place) -> None:
        shutil.rmtree(place.directory)

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    image = Image("test", tmp_path, tmp_path, None, vcpu_count=1, memory_mib=128)
    run_kit(FakeDriver, make_place, drop_place, image, scratch)


@pytest.mark.parametrize("use_control_socket", [True, False], ids=["socket", "command-line"])
class TestGvisor:
    pytestmark = needs_runsc

    def test_kit(
        self, root: Path, rootfs: Path, agent: Path, tmp_path: Path, use_control_socket: bool
    ) -> None:
        slots = iter(range(1 if use_control_socket else 100, 1000))

        async def make_place() -> Place:
            return rig.make_place(root, next(slots))

        run_kit(
            lambda: GvisorDriver(use_control_socket=use_control_socket),
            make_place,
            rig.drop_place,
            rig.make_image(rootfs, agent),
            tmp_path,
        )
