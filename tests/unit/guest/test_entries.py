import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from alcove.guest.entries import (
    Owners,
    describe,
    permissions,
    presentable,
    read_metadata,
    replace_metadata,
    rfc3339,
)


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        (stat.S_IFREG | 0o644, "-rw-r--r--"),
        (stat.S_IFREG, "----------"),
        (stat.S_IFDIR | 0o755, "drwxr-xr-x"),
        (stat.S_IFLNK | 0o777, "Lrwxrwxrwx"),
        (stat.S_IFREG | 0o4755, "urwxr-xr-x"),
        (stat.S_IFREG | 0o6711, "ugrwx--x--x"),
        (stat.S_IFDIR | 0o1777, "dtrwxrwxrwx"),
        (stat.S_IFCHR | 0o666, "Dcrw-rw-rw-"),
        (stat.S_IFBLK | 0o660, "Drw-rw----"),
        (stat.S_IFIFO | 0o600, "prw-------"),
        (stat.S_IFSOCK | 0o600, "Srw-------"),
    ],
)
def test_permissions_as_go_writes_them(mode, text):
    assert permissions(mode) == text


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_700_000_000_000_000_000, "2023-11-14T22:13:20Z"),
        (1_700_000_000_120_000_000, "2023-11-14T22:13:20.120Z"),
        (1_700_000_000_000_001_000, "2023-11-14T22:13:20.000001Z"),
        (1_700_000_000_000_000_001, "2023-11-14T22:13:20.000000001Z"),
        (-1, "1969-12-31T23:59:59.999999999Z"),
        (10**30, "1970-01-01T00:00:00Z"),
        (300_000_000_000 * 10**9, "1970-01-01T00:00:00Z"),
    ],
)
def test_times(time_ns, text):
    assert rfc3339(time_ns) == text


def test_a_file(tmp_path):
    path = tmp_path / "a file"
    path.write_bytes(b"12345")
    path.chmod(0o640)
    os.setxattr(path, "user.e2b.key", b"value")
    os.setxattr(path, "user.other", b"hidden")
    os.utime(path, ns=(0, 1_700_000_000_000_000_000))
    entry = describe(str(path), Owners())
    if os.getuid() == 0:
        assert (entry.pop("owner"), entry.pop("group")) == ("root", "root")
    assert {key: entry[key] for key in entry if key not in {"owner", "group"}} == {
        "name": "a file",
        "type": "FILE_TYPE_FILE",
        "path": str(path),
        "size": "5",
        "mode": 0o640,
        "permissions": "-rw-r-----",
        "modifiedTime": datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
        .isoformat()
        .replace("+00:00", "Z"),
        "metadata": {"key": "value"},
    }


def test_a_directory_and_the_root(tmp_path):
    entry = describe(f"{tmp_path}/", Owners())
    assert entry["type"] == "FILE_TYPE_DIRECTORY"
    assert entry["name"] == tmp_path.name
    assert describe("/", Owners())["name"] == "/"


def test_a_link_shows_its_target_and_itself(tmp_path):
    target = tmp_path / "target"
    target.write_text("content")
    target.chmod(0o600)
    (tmp_path / "middle").symlink_to(target)
    link = tmp_path / "link"
    link.symlink_to("middle")
    entry = describe(str(link), Owners())
    assert entry["type"] == "FILE_TYPE_FILE"
    assert entry["mode"] == 0o600
    assert entry["permissions"] == "Lrwxrwxrwx"
    assert entry["size"] == str(len("middle"))
    assert entry["symlinkTarget"] == str(target)


@pytest.mark.parametrize("target", ["nowhere", "link"])
def test_a_broken_link_points_at_itself(tmp_path, target):
    link = tmp_path / "link"
    link.symlink_to(target)
    entry = describe(str(link), Owners())
    assert entry["type"] == "FILE_TYPE_UNSPECIFIED"
    assert entry["mode"] == 0
    assert entry["symlinkTarget"] == str(link)


def test_special_files_have_no_type(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    assert describe(str(tmp_path / "fifo"), Owners())["type"] == "FILE_TYPE_UNSPECIFIED"


@pytest.mark.skipif(os.geteuid() != 0, reason="chown needs root")
def test_owners_without_a_name_are_numbers(tmp_path):
    path = tmp_path / "f"
    path.write_text("")
    os.chown(path, 54321, 54322)
    entry = describe(str(path), Owners())
    assert (entry["owner"], entry["group"]) == ("54321", "54322")


def test_names_that_are_not_utf_8_can_be_sent(tmp_path):
    path = Path(os.fsdecode(bytes(tmp_path) + b"/\xff\xfe\xc3\xa9"))
    path.write_text("")
    entry = describe(str(path), Owners())
    assert entry["name"] == "��é"
    entry["path"].encode()
    assert presentable("grüße") == "grüße"


def test_metadata_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "f"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    replace_metadata(fd, {"a": "1", "b": "2"})
    os.setxattr(path, "user.kept", b"x")
    replace_metadata(fd, {"b": "3"})
    assert read_metadata(str(path)) == {"b": "3"}
    replace_metadata(fd, {})
    assert read_metadata(fd) == {}
    assert os.getxattr(path, "user.kept") == b"x"
    os.close(fd)


def test_a_file_system_without_attributes_is_silent():
    fd = os.open("/proc/version", os.O_RDONLY)
    replace_metadata(fd, {"a": "1"})
    assert read_metadata(fd) == {}
    os.close(fd)
