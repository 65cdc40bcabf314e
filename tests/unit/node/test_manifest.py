"""Snapshots on disk: whole or absent, checksums that may come later, what is refused."""

from pathlib import Path

import pytest

from alcove.node.drivers import manifest
from alcove.node.drivers.driver import (
    DriverError,
    SnapshotDamagedError,
    SnapshotIncompatibleError,
)


@pytest.fixture
def described(tmp_path: Path) -> Path:
    directory = tmp_path / "snapshot"
    directory.mkdir()
    (directory / "pages.img").write_bytes(b"x" * 10_000)
    manifest.describe(directory, "gvisor", "1")
    return directory


def strange() -> None:
    """What a node knows after a restart."""
    manifest._trusted.clear()


def alter(directory: Path) -> None:
    with (directory / "pages.img").open("r+b") as file:
        file.write(b"y")


def test_what_this_process_wrote_needs_no_look(described: Path) -> None:
    assert manifest.check(described, "gvisor", "1")
    manifest.seal(described)
    assert manifest.check(described, "gvisor", "1")


def test_after_a_restart_contents_are_compared_once(described: Path) -> None:
    manifest.seal(described)
    strange()
    assert not manifest.check(described, "gvisor", "1")
    manifest.check_contents(described)
    assert manifest.check(described, "gvisor", "1")


def test_a_crash_before_the_checksums_loses_nothing(described: Path) -> None:
    strange()
    assert not manifest.sealed(described)
    assert not manifest.check(described, "gvisor", "1")
    manifest.check_contents(described)
    assert manifest.sealed(described)
    strange()
    alter(described)
    assert not manifest.check(described, "gvisor", "1")
    with pytest.raises(SnapshotDamagedError, match="differ"):
        manifest.check_contents(described)


def test_what_changed_before_it_was_sealed_is_not_sealed(described: Path) -> None:
    alter(described)
    manifest.seal(described)
    assert not manifest.sealed(described)


def test_checksums_cut_off_in_the_middle_are_still_owed(described: Path) -> None:
    (described / "checksums.owed").write_text('{"pages.img": "12')
    strange()
    assert not manifest.check(described, "gvisor", "1")
    manifest.check_contents(described)
    assert manifest.sealed(described)


@pytest.mark.parametrize("text", ["", '{"pages', "[]", "{}", None])
def test_checksums_that_were_written_and_are_not_there_are_damage(
    described: Path, text: str | None
) -> None:
    manifest.seal(described)
    file = described / "checksums.json"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(SnapshotDamagedError, match="checksum"):
        manifest.check(described, "gvisor", "1")


def test_sealing_what_is_gone_does_nothing(tmp_path: Path) -> None:
    manifest.seal(tmp_path / "gone")
    assert list(tmp_path.iterdir()) == []


def test_a_short_or_missing_file_is_damage(described: Path) -> None:
    (described / "pages.img").write_bytes(b"x")
    with pytest.raises(SnapshotDamagedError, match="1 bytes, and 10000"):
        manifest.check(described, "gvisor", "1")
    (described / "pages.img").unlink()
    with pytest.raises(SnapshotDamagedError, match="missing"):
        manifest.check(described, "gvisor", "1")


def test_another_driver_or_version_is_no_damage(described: Path) -> None:
    for driver, version in (("fake", "1"), ("gvisor", "2")):
        with pytest.raises(SnapshotIncompatibleError):
            manifest.check(described, driver, version)


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DriverError), manifest.new_directory(tmp_path / "snapshot") as directory:
        (directory / "pages.img").write_bytes(b"x")
        raise DriverError("no space")
    assert list(tmp_path.iterdir()) == []
