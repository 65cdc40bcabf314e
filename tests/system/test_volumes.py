"""Volumes as file systems: the quota holds, they grow in use, and nothing of them is left."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from alcove.node.errors import NoCapacityError
from alcove.node.volumes.attaching import BindMounts
from alcove.node.volumes.disks import LoopDisks
from alcove.node.volumes.errors import ContentError
from alcove.node.volumes.store import Volumes
from alcove.node.volumes.tree import Ownership, Tree
from alcove.wire.ids import VolumeId
from alcove.wire.node import VolumeSpec

pytestmark = [pytest.mark.root, pytest.mark.system]

ID = VolumeId("22222222-2222-4222-8222-222222222222")
MIB = 1 << 20


def loops(under: Path) -> list[str]:
    """Loop devices whose files are there."""
    files = Path("/sys/block").glob("loop*/loop/backing_file")
    found = []
    for file in files:
        try:
            found.append(file.read_text().strip())
        except OSError:
            continue  # it is being taken apart
    return [name for name in found if name.startswith(str(under))]


def with_volumes(tmp_path: Path, act: Callable[[Volumes], Awaitable[None]]) -> None:
    async def scenario() -> None:
        volumes = Volumes(tmp_path, LoopDisks(), BindMounts())
        try:
            await act(volumes)
        finally:
            await volumes.unmount_all()

    asyncio.run(scenario())
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def fill(tree: Tree, name: str, mib: int) -> None:
    with tree.writing(name, Ownership(), force=True) as upload:
        for _ in range(mib):
            left = memoryview(os.urandom(MIB))
            while left:
                left = left[os.write(upload.fd, left) :]
        os.fsync(upload.fd)
        tree.keep(upload)


def test_the_quota_holds_and_grows_while_the_volume_is_used(tmp_path: Path) -> None:
    async def act(volumes: Volumes) -> None:
        await volumes.ensure(VolumeSpec(ID, 32, 200))
        tree = Tree(await volumes.files(ID))
        assert tree.entries("/", 1) == []
        assert tree.stat("/")["mode"] == 0o777
        fill(tree, "fits", 28)
        with pytest.raises(ContentError) as refused:
            fill(tree, "too much", 8)
        assert (refused.value.status, refused.value.code) == (507, "QUOTA_EXCEEDED")
        assert [entry["name"] for entry in tree.entries("/", 1)] == ["fits"]
        grown = await volumes.ensure(VolumeSpec(ID, 64, 200))
        assert grown.size_mib == 64
        fill(tree, "fits now", 24)
        report = volumes.report(ID)
        assert 52 * MIB < report.used_bytes < 64 * MIB
        assert report.inodes_used == 2

    with_volumes(tmp_path, act)


def test_the_number_of_files_has_a_limit_of_its_own(tmp_path: Path) -> None:
    async def act(volumes: Volumes) -> None:
        await volumes.ensure(VolumeSpec(ID, 32, 50))
        report = volumes.report(ID)
        tree = Tree(await volumes.files(ID))
        with pytest.raises(ContentError) as refused:
            for number in range(report.inodes + 1):
                tree.make_directory(f"d{number}", Ownership(), force=False)
        assert refused.value.code == "QUOTA_EXCEEDED"

    with_volumes(tmp_path, act)


def test_a_volume_outlives_its_mount_and_goes_without_remains(tmp_path: Path) -> None:
    async def act(volumes: Volumes) -> None:
        await volumes.ensure(VolumeSpec(ID, 16, 100))
        fill(Tree(await volumes.files(ID)), "kept", 1)
        await volumes.unmount_all()
        again = Volumes(tmp_path, LoopDisks(), BindMounts())
        assert Tree(await again.files(ID)).stat("kept")["size"] == MIB
        assert len(loops(tmp_path)) == 1
        await again.remove(ID)
        assert os.listdir(tmp_path) == []  # noqa: PTH208 - asyncio's rule forbids the other

    with_volumes(tmp_path, act)


def test_a_making_that_was_cut_off_is_begun_again(tmp_path: Path) -> None:
    async def act(volumes: Volumes) -> None:
        await volumes.ensure(VolumeSpec(ID, 16, 100))
        await volumes.unmount_all()
        image = tmp_path / ID / "volume.img"
        image.rename(image.with_name("volume.making"))
        await volumes.ensure(VolumeSpec(ID, 16, 100))
        fill(Tree(await volumes.files(ID)), "f", 1)

    with_volumes(tmp_path, act)


def test_no_more_is_promised_than_there_is(tmp_path: Path) -> None:
    async def act(volumes: Volumes) -> None:
        free_mib = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize // MIB
        with pytest.raises(NoCapacityError):
            await volumes.ensure(VolumeSpec(ID, free_mib + 1, 100))
        assert os.listdir(tmp_path) == []  # noqa: PTH208 - asyncio's rule forbids the other

    with_volumes(tmp_path, act)
