"""Layers of images: what they become, and what hostile and damaged ones come to."""

import gzip
import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import zstandard

from alcove.node.building.unpacking import Job, layer_path

pytestmark = [pytest.mark.system, pytest.mark.root, pytest.mark.timeout(120)]

MOST = 8 << 20


@pytest.fixture
def place() -> Iterator[Path]:
    """Not below /tmp, which the machine may hold in memory."""
    with tempfile.TemporaryDirectory(prefix="unpack-", dir="/var/tmp") as directory:
        yield Path(directory)


def entry(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    content = fields.pop("content", b"")
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mode = 0o644
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def directory(name: str, mode: int = 0o755) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.DIRTYPE, mode=mode)


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=kind, linkname=target)


def layer(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return written.getvalue()


def unpack(
    place: Path,
    *layers: bytes,
    pack: Callable[[bytes], bytes] = gzip.compress,
    diff_ids: list[str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the program as the node does, in namespaces of its own."""
    work, store = place / "work", place / "store"
    work.mkdir()
    store.mkdir(exist_ok=True)
    blobs = []
    for number, content in enumerate(layers):
        blobs.append(place / f"blob{number}")
        blobs[-1].write_bytes(pack(content))
    found = ["sha256:" + hashlib.sha256(content).hexdigest() for content in layers]
    job = Job([str(b) for b in blobs], diff_ids or found, str(store), str(work), "", MOST)
    job = Job(**asdict(job) | {"root": str(place / "root")})
    program = [sys.executable, "-m", "alcove.node.building.unpacking", json.dumps(asdict(job))]
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return subprocess.run([*unshare, *program], capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress, bytes])
def test_layers_of_every_compression_become_a_root(
    place: Path, pack: Callable[[bytes], bytes]
) -> None:
    lower = layer(
        directory("etc", 0o711),
        entry("etc/kept", content=b"lower", uid=1234, gid=77, mode=0o4755),
        entry("etc/gone", content=b"x"),
        entry("etc/changed", content=b"x"),
        directory("full"),
        entry("full/old", content=b"x"),
        directory("whole"),
        entry("whole/file", content=b"x"),
        link("lnk", "etc"),
        link("hard", "etc/kept", tarfile.LNKTYPE),
        entry("attributes", pax_headers={"SCHILY.xattr.user.a": "b"}),
        entry("dev/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    )
    upper = layer(
        entry("etc/.wh.gone"),
        entry("etc/changed", content=b"upper"),
        entry("full/new", content=b"new"),
        entry("full/.wh..wh..opq"),
        entry(".wh.whole"),
        entry(".wh..wh.plnk"),
        # Names that are not of a file beside it.
        entry(".wh.."),
        entry("etc/.wh..."),
    )
    done = unpack(place, lower, upper, pack=pack)
    assert done.returncode == 0, done.stderr
    root = place / "root"
    assert json.loads(done.stdout)["bytes"] >= 8192
    kept = (root / "etc/kept").stat()
    assert (kept.st_uid, kept.st_gid, stat.S_IMODE(kept.st_mode)) == (1234, 77, 0o4755)
    assert (root / "hard").stat().st_ino == kept.st_ino
    assert sorted(path.name for path in (root / "etc").iterdir()) == ["changed", "kept"]
    assert (root / "etc/changed").read_text() == "upper"
    assert [path.name for path in (root / "full").iterdir()] == ["new"]
    assert not (root / "whole").exists()
    assert (root / "lnk").readlink() == Path("etc")
    assert os.getxattr(root / "attributes", "user.a") == b"b"
    assert list((root / "dev").iterdir()) == []  # nothing leads to the machine's devices
    assert (root / ".alcove").is_dir()
    assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777
    stored = layer_path(place / "store", "sha256:" + hashlib.sha256(lower).hexdigest())
    assert (stored / "diff/etc/kept").stat().st_ino == kept.st_ino  # stored once


def test_a_layer_that_is_there_is_not_unpacked_again(place: Path) -> None:
    content = layer(entry("file", content=b"x"))
    assert unpack(place, content).returncode == 0
    for name in ("work", "root"):
        (place / name).rename(place / f"old-{name}")
    # What is not read need not be right.
    again = unpack(place, content, pack=lambda _: b"no archive")
    assert again.returncode == 0, again.stderr
    assert (place / "root/file").stat().st_ino == (place / "old-root/file").stat().st_ino


def test_nothing_is_written_outside(place: Path) -> None:
    outside = place / "outside"
    outside.mkdir()
    (outside / "victim").write_text("as it was")
    hostile = layer(
        entry("../outside/a", content=b"x"),
        entry(f"{outside}/b", content=b"x"),
        link("direct", str(outside)),
        link("up", "../" * 20 + str(outside).lstrip("/")),
        entry("after", content=b"x"),
    )
    through = layer(link("d", str(outside)), entry("d/c", content=b"x"))
    hard = layer(link("h", f"{outside}/victim", tarfile.LNKTYPE), entry("h", content=b"hit"))
    lower = layer(link("etc", str(outside)))
    upper = layer(
        entry("etc/.wh.victim"), entry("etc/new", content=b"x"), entry("etc/.wh..wh..opq")
    )
    for number, layers in enumerate(([hostile], [through], [hard], [lower, upper])):
        one = place / str(number)
        one.mkdir()
        unpack(one, *layers)
        assert [path.name for path in outside.iterdir()] == ["victim"]
        assert (outside / "victim").read_text() == "as it was"
    # A link of a lower layer is replaced where an upper one has a directory.
    assert sorted(path.name for path in (place / "3/root/etc").iterdir()) == ["new"]


def test_a_hole_stays_a_hole(place: Path) -> None:
    with (place / "hole").open("wb") as file:
        file.truncate(1 << 40)
    make = ["tar", "--create", "--sparse", f"--directory={place}", "hole"]
    done = unpack(place, subprocess.run(make, capture_output=True, check=True).stdout)
    assert done.returncode == 0, done.stderr
    status = (place / "root/hole").stat()
    assert status.st_size == 1 << 40
    assert status.st_blocks * 512 < 1 << 20


@pytest.mark.parametrize(
    ("layers", "changes", "words"),
    [
        ([layer(entry("a", content=b"\0" * (MOST + 1)))], {}, "larger than the template's disk"),
        (
            [
                layer(entry("a", content=b"x" * (MOST // 2))),
                layer(entry("b", content=b"y" * (MOST // 2))),
            ],
            {},
            "larger than the template's disk",
        ),
        ([layer(entry("a"))], {"diff_ids": ["sha256:" + "0" * 64]}, "was tampered with"),
        ([layer(entry("a"))], {"pack": lambda data: gzip.compress(data)[:-12]}, "is damaged"),
        (
            [layer(entry("a"))],
            {"pack": lambda data: zstandard.compress(data)[:-6]},
            "damaged|tampered",
        ),
        ([b"no archive at all" * 100], {}, "cannot be unpacked: tar: "),
        ([layer(entry("a/" * 2100 + "b"))], {}, "cannot be unpacked|too deep|too long"),
    ],
)
def test_what_is_refused(
    place: Path, layers: list[bytes], changes: dict[str, Any], words: str
) -> None:
    done = unpack(place, *layers, **changes)
    assert done.returncode == 1
    assert any(word in done.stderr for word in words.split("|")), done.stderr
    assert str(place) not in done.stderr or "too" in words
    assert len(list((place / "store").iterdir())) == len(layers) - 1  # only what came whole


def test_too_many_files_are_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alcove.node.building import unpacking

    monkeypatch.setattr(unpacking, "_MOST_ENTRIES", 10)
    budget = unpacking._Budget(MOST)
    budget.take(entries=10)
    with pytest.raises(unpacking.UnpackError, match="more than 10 files"):
        budget.take(entries=1)
