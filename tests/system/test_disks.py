import asyncio
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from alcove.node import disks

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems"),
]

_MIB = 1 << 20


@pytest.fixture
def slot(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "a slot"
    yield directory
    asyncio.run(disks.remove(directory))
    assert disks.mounted(tmp_path) == []
    assert str(tmp_path) not in "".join(
        path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file")
    )


def test_a_disk_is_empty_limited_and_costs_little(slot: Path) -> None:
    mount_point = asyncio.run(disks.create(slot, 64))
    assert list(mount_point.iterdir()) == []
    assert disks.mounted(slot) == [mount_point]
    usage = disks.usage(slot)
    assert usage.used_bytes < _MIB
    assert 58 * _MIB < usage.total_bytes <= 64 * _MIB
    assert _allocated(slot) < _MIB


def test_a_full_disk_says_so_and_frees_what_is_deleted(slot: Path) -> None:
    mount_point = asyncio.run(disks.create(slot, 32))
    with (
        pytest.raises(OSError, match="No space left") as full,
        (mount_point / "file").open("wb") as file,
    ):
        while True:
            file.write(bytes(_MIB))
            file.flush()
    assert full.value.errno == errno.ENOSPC
    os.sync()
    assert _allocated(slot) > 25 * _MIB
    (mount_point / "file").unlink()
    os.sync()
    assert _allocated(slot) < 2 * _MIB


def test_a_repeated_create_starts_empty_and_a_repeated_remove_is_harmless(slot: Path) -> None:
    for _ in range(2):
        mount_point = asyncio.run(disks.create(slot, 16))
        assert list(mount_point.iterdir()) == []
        (mount_point / "file").write_text("x")
    for _ in range(2):
        asyncio.run(disks.remove(slot))
        assert list(slot.iterdir()) == []


def test_devices_and_set_user_id_are_off_but_programs_run(slot: Path) -> None:
    mount_point = asyncio.run(disks.create(slot, 16))
    flags = os.statvfs(mount_point).f_flag
    assert flags & os.ST_NODEV
    assert flags & os.ST_NOSUID
    assert not flags & os.ST_NOEXEC


def _allocated(slot: Path) -> int:
    return (slot / "disk.img").stat().st_blocks * 512
