"""The snapshots of a node on the disk (node/snapshots.py): whole, or remains that are removed."""

import asyncio
import json
import stat
from pathlib import Path

import pytest

from alcove.node.drivers import manifest
from alcove.node.errors import (
    BusyError,
    DamagedError,
    InvalidRequestError,
    NotHereError,
    SaveFailedError,
)
from alcove.node.origins import Origin, Startup
from alcove.node.snapshots import SnapshotRecord, Snapshots
from alcove.wire.ids import BuildId, SandboxId, SnapshotId, TemplateId
from alcove.wire.node import SnapshotReport

ID = SnapshotId("abcdef00-2222-4222-8222-222222222222")
OTHER = SnapshotId("33333333-3333-4333-8333-333333333333")


def store(directory: Path, version: str = "1") -> Snapshots:
    return Snapshots(directory / "snapshots", "fake", version)


def record(snapshot_id: SnapshotId = ID) -> SnapshotRecord:
    report = SnapshotReport(
        snapshot_id=snapshot_id,
        sandbox_id=SandboxId("i1"),
        generation=1,
        template_id=TemplateId("base1"),
        build_id=BuildId("11111111-1111-4111-8111-111111111111"),
        memory=True,
        vcpu_count=2,
        memory_mib=512,
        disk_mib=1024,
        driver="fake 1",
        agent_version="0.0.1",
        size_bytes=0,
        created_at=1.0,
    )
    startup = Startup("user", "/home/user", "serve", "true", {"A": "1"})
    return SnapshotRecord(report, Origin("rootfs", "agent", "0.0.1", startup), "secret", True)


def make(snapshots: Snapshots, snapshot_id: SnapshotId = ID) -> SnapshotReport:
    return asyncio.run(keep(snapshots, snapshot_id))


async def keep(snapshots: Snapshots, snapshot_id: SnapshotId) -> SnapshotReport:
    with snapshots.making(snapshot_id, 0) as into:
        with manifest.new_directory(into) as directory:
            (directory / "pages.img").write_bytes(bytes(100_000))
            manifest.write(directory, "fake", "1")
        return await snapshots.keep(record(snapshot_id))


def test_a_snapshot_is_known_to_the_next_process(tmp_path):
    made = make(store(tmp_path))
    assert made.size_bytes >= 100_000
    again = store(tmp_path)
    assert again.reports() == [made]
    assert again.get(ID).origin == record().origin
    assert again.get(ID).access_token == "secret"
    path = tmp_path / "snapshots" / ID / "record.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_save_that_ends_without_a_record_leaves_nothing(tmp_path):
    snapshots = store(tmp_path)
    with pytest.raises(OSError, match="full"), snapshots.making(ID, 0) as into:
        into.mkdir()
        raise OSError("full")
    assert list((tmp_path / "snapshots").iterdir()) == []
    with pytest.raises(NotHereError):
        snapshots.report(ID)


def test_what_a_crash_leaves_is_swept(tmp_path):
    make(store(tmp_path))
    directory = tmp_path / "snapshots"
    (directory / OTHER / "data").mkdir(parents=True)
    (directory / OTHER / "record.json.new").write_text("{")
    (directory / "junk").mkdir()
    snapshots = store(tmp_path)
    assert asyncio.run(snapshots.sweep()) == 2
    assert [path.name for path in directory.iterdir()] == [ID]


def test_checksums_that_a_crash_prevented_are_written_by_the_next_process(tmp_path):
    async def save() -> None:
        snapshots = store(tmp_path)
        with snapshots.making(ID, 0) as into:
            with manifest.new_directory(into) as directory:
                (directory / "pages.img").write_bytes(bytes(100_000))
                manifest.describe(directory, "fake", "1")
            await snapshots.keep(record())

    asyncio.run(save())
    again = store(tmp_path)
    assert not manifest.sealed(again.data(ID))
    asyncio.run(again.seal_owed())
    assert manifest.sealed(again.data(ID))
    (again.data(ID) / "pages.img").write_bytes(bytes(99_999) + b"x")
    with pytest.raises(DamagedError, match="contents differ"):
        asyncio.run(again.check(ID))
    (again.data(ID) / "manifest.json").unlink()
    (again.data(ID) / "checksums.owed").touch()
    third = store(tmp_path)
    asyncio.run(third.seal_owed())
    assert not manifest.sealed(third.data(ID))


def test_a_removal_that_was_cut_short_is_finished(tmp_path):
    make(store(tmp_path))
    (tmp_path / "snapshots" / ID / "record.json").unlink()
    snapshots = store(tmp_path)
    assert snapshots.reports() == []
    assert asyncio.run(snapshots.sweep()) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 2}', '{"format": 1}', "null"])
def test_a_record_that_cannot_be_read_is_no_snapshot_and_is_not_lost(tmp_path, text):
    make(store(tmp_path))
    path = tmp_path / "snapshots" / ID / "record.json"
    whole = path.read_text()
    path.write_text(text)
    snapshots = store(tmp_path)
    assert snapshots.reports() == []
    assert asyncio.run(snapshots.sweep()) == 0
    path.write_text(whole)
    assert len(store(tmp_path).reports()) == 1
    asyncio.run(snapshots.remove(ID))
    assert list((tmp_path / "snapshots").iterdir()) == []


def test_the_record_of_another_snapshot_is_not_believed(tmp_path):
    make(store(tmp_path))
    directory = tmp_path / "snapshots"
    (directory / ID).rename(directory / OTHER)
    assert store(tmp_path).reports() == []


def test_what_another_version_wrote_is_shown_as_such(tmp_path):
    assert make(store(tmp_path)).restorable
    (report,) = store(tmp_path, version="2").reports()
    assert not report.restorable


def test_room_that_others_were_promised_is_not_given_twice(tmp_path):
    snapshots = store(tmp_path)
    with (
        snapshots.making(ID, 1 << 20),
        pytest.raises(SaveFailedError, match="MiB"),
        snapshots.making(OTHER, 10**18),
    ):
        raise AssertionError("unreachable")
    with pytest.raises(BusyError), snapshots.making(ID, 0), snapshots.making(ID, 0):
        raise AssertionError("unreachable")


def test_what_is_being_made_is_neither_removed_nor_swept(tmp_path):
    snapshots = store(tmp_path)
    with snapshots.making(ID, 0) as into:
        into.mkdir()
        with pytest.raises(BusyError):
            asyncio.run(snapshots.remove(ID))
        assert asyncio.run(snapshots.sweep()) == 0
        assert into.exists()


@pytest.mark.parametrize(
    "name", ["", "..", "../../etc", "x" * 300, ID.upper(), f"{ID}\n", "{" + ID]
)
def test_only_uuids_name_directories(tmp_path, name):
    with pytest.raises(InvalidRequestError):
        store(tmp_path).data(SnapshotId(name))


def test_a_token_is_in_no_report(tmp_path):
    assert "secret" not in json.dumps(make(store(tmp_path)).to_json())
