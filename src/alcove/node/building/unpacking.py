"""The layers of an image as directories, and the root they make: a program of its own.

    python -m alcove.node.building.unpacking '<Job as JSON>'

    blob ──inflated, counted, hashed──▶ tar in a root of its own ──▶ <store>/<digest>/diff
                                             its layers linked into one ──▶ root

It runs in a mount namespace that ends with it (node/run.py). GNU tar sees nothing of the machine
but /usr, read-only, and the directory of the layer: whatever an archive names, nothing else can be
written. It is fed by us, so no archive inflates to more bytes than are allowed, holds more files,
or differs from what the image says of it. Holes of sparse files stay holes.

Prints {"bytes": of the root} at the end, or says what is wrong and exits with 1.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import zstandard
from isal import igzip

from alcove.node import trees
from alcove.node.building import merging
from alcove.node.run import CommandError, run

_CHUNK, _BLOCK = 1 << 20, 512
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_MOST_ENTRIES = 1_000_000
_SAID_BYTES = 4096
_IDLE = re.compile(r"Removing leading|Exiting with failure|Error is not recoverable|time stamp")
"""What tar says beside the reason of a failure."""
_DIFF_ID = re.compile(r"sha256:[0-9a-f]{64}\Z")
NEW = ".new-"
_NAME = "layer.json"
_MOUNT_POINTS = (".alcove", ".alcove-volumes", "dev", "proc", "sys", "run", "tmp")
_KEPT_IN_TMP = "tmp/.X11-unix"
"""runsc mounts memory over an empty /tmp: what is written there must count as disk."""
_TAR = [
    *("tar", "--extract", "--file=-", "--numeric-owner", "--same-owner", "--same-permissions"),
    # Nothing that speaks to overlayfs or to another policy of the machine.
    *("--xattrs", "--xattrs-include=security.capability", "--xattrs-include=user.*"),
    *("--delay-directory-restore", "--verbose", "--quoting-style=escape"),
]


class UnpackError(Exception):
    """The image cannot be unpacked; the message is for the template's author."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done; directories are of this machine."""

    blobs: list[str]
    """Files with the layers, the lowest first."""
    diff_ids: list[str]
    """What each layer says it is when it is inflated: "sha256:..."."""
    store: str
    """Where layers are kept, by their diff_ids."""
    work: str
    """An empty directory."""
    root: str
    """To be made."""
    most_bytes: int


@dataclass(slots=True)
class _Budget:
    """What the layers of one image may come to."""

    most_bytes: int
    bytes: int = 0
    entries: int = 0

    def take(self, count: int = 0, entries: int = 0) -> None:
        self.bytes += count
        self.entries += entries
        if self.bytes > self.most_bytes:
            raise UnpackError(
                "the image is larger than the template's disk, which has"
                f" {self.most_bytes >> 20} MiB"
            )
        if self.entries > _MOST_ENTRIES:
            raise UnpackError(f"the image has more than {_MOST_ENTRIES} files")


@dataclass(slots=True)
class _Tar:
    """One tar that is extracting."""

    process: asyncio.subprocess.Process
    into: int
    """File descriptor of its standard input."""
    said: bytes = field(default=b"")


def checked(diff_id: str) -> str:
    """A diff_id, which becomes a name of a directory. Raises ValueError."""
    if not _DIFF_ID.match(diff_id):
        raise ValueError(f"{diff_id[:80]!r} is not a SHA-256 digest")
    return diff_id


def layer_path(store: Path, diff_id: str) -> Path:
    return store / diff_id.replace(":", "-")


async def unpack(job: Job) -> int:
    """Make the root; its size in bytes. Raises UnpackError, TreeError, CommandError, OSError."""
    store, budget = Path(job.store), _Budget(job.most_bytes)
    jail = Path(job.work) / "jail"
    await _make_jail(jail)
    for blob, diff_id in zip(job.blobs, job.diff_ids, strict=True):
        if not _take_kept(layer_path(store, diff_id), budget):
            new = Path(tempfile.mkdtemp(prefix=NEW, dir=store))
            before = budget.bytes, budget.entries
            diff = _begin(new)
            try:
                await _extract(Path(blob), diff_id, diff, jail, budget)
            except BaseException:
                await trees.remove(new)
                raise
            _take_devices_out(diff)
            size = {"bytes": budget.bytes - before[0], "entries": budget.entries - before[1]}
            _keep(new, size, layer_path(store, diff_id))
    for diff_id in job.diff_ids:
        merging.merge(str(layer_path(store, diff_id) / "diff"), job.root)
    _complete(Path(job.root))
    return trees.measure(Path(job.root)).bytes


def _take_kept(layer: Path, budget: _Budget) -> bool:
    """Count a layer that is there already; False if it is not."""
    try:
        known = json.loads((layer / _NAME).read_text())
    except FileNotFoundError:
        return False
    budget.take(known["bytes"], known["entries"])
    return True


def _begin(new: Path) -> Path:
    diff = new / "diff"
    diff.mkdir(mode=0o755)
    return diff


def _keep(new: Path, size: dict[str, int], layer: Path) -> None:
    (new / _NAME).write_text(json.dumps(size))
    with contextlib.suppress(OSError):  # another build made it meanwhile
        new.rename(layer)


async def _make_jail(jail: Path) -> None:
    """A root with nothing in it but what tar needs."""
    await run(["mkdir", "--", str(jail)])
    await run(["mount", "-t", "tmpfs", "-o", "nosuid,nodev,mode=755", "tmpfs", str(jail)])
    await run(["mkdir", "--", f"{jail}/usr", f"{jail}/layer"])
    await run(["mount", "--bind", "-o", "ro", "/usr", f"{jail}/usr"])
    for name in ("bin", "lib", "lib64"):
        (jail / name).symlink_to(f"usr/{name}")


async def _extract(blob: Path, diff_id: str, into: Path, jail: Path, budget: _Budget) -> None:
    await run(["mount", "--bind", str(into), str(jail / "layer")])
    try:
        await _fill(blob, diff_id, jail, budget)
    finally:
        await run(["umount", str(jail / "layer")])


async def _fill(blob: Path, diff_id: str, jail: Path, budget: _Budget) -> None:
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *("chroot", str(jail), *_TAR, "--directory=/layer"),
        stdin=reading,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
    )
    os.close(reading)
    tar = _Tar(process, writing)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_count(tar, budget))
            group.create_task(_listen(tar))
            group.create_task(asyncio.to_thread(_feed, blob, diff_id, tar, budget))
    except ExceptionGroup as errors:
        # Not after a good end: the kill would race with asyncio for the exit code.
        _kill(tar)
        await process.wait()
        raise errors.exceptions[0] from None
    await process.wait()
    if process.returncode:
        lines = tar.said.decode(errors="replace").splitlines()
        said = next((line for line in lines if not _IDLE.search(line)), "")
        raise UnpackError(f"the layer {diff_id[:19]} cannot be unpacked: {said[:300]}")


async def _count(tar: _Tar, budget: _Budget) -> None:
    """Each line that tar prints is a file."""
    assert tar.process.stdout is not None
    try:
        while said := await tar.process.stdout.read(1 << 16):
            budget.take(entries=said.count(b"\n"))
    except UnpackError:
        # Or it would be fed to the end.
        _kill(tar)
        raise


async def _listen(tar: _Tar) -> None:
    assert tar.process.stderr is not None
    while said := await tar.process.stderr.read(1 << 16):
        tar.said = (tar.said + said)[:_SAID_BYTES]


def _feed(blob: Path, diff_id: str, tar: _Tar, budget: _Budget) -> None:
    """Hand tar the layer, and see that it is what the image says. Raises UnpackError."""
    digest = hashlib.sha256()
    is_open, count = True, 0
    try:
        for chunk in _inflated(blob):
            budget.take(len(chunk))
            digest.update(chunk)
            count += len(chunk)
            if is_open:
                is_open = _write(tar.into, chunk)
        # Go's archives may end with the last byte of the last file (umoci's do); GNU tar's do not.
        _write(tar.into, bytes(-count % _BLOCK + 2 * _BLOCK))
    except (zlib.error, zstandard.ZstdError, igzip.BadGzipFile, EOFError) as error:
        _kill(tar)
        raise UnpackError(f"the layer {diff_id[:19]} is damaged: {error}") from error
    except UnpackError:
        _kill(tar)
        raise
    finally:
        os.close(tar.into)
    if f"sha256:{digest.hexdigest()}" != diff_id:
        raise UnpackError(
            f"the layer {diff_id[:19]} has the content of sha256:{digest.hexdigest()[:12]}: the"
            " image is damaged or was tampered with"
        )


def _kill(tar: _Tar) -> None:
    with contextlib.suppress(ProcessLookupError):
        tar.process.kill()


def _write(descriptor: int, chunk: bytes) -> bool:
    """False when tar reads no more: it says why, or had the end of the archive."""
    view = memoryview(chunk)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except BrokenPipeError:
        return False
    return True


def _inflated(blob: Path) -> Iterator[bytes]:
    with blob.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        reader: BinaryIO | Any = file
        if start.startswith(_GZIP):
            reader = igzip.IGzipFile(fileobj=file, mode="rb")  # type: ignore[no-untyped-call]  # it has no annotations
        elif start == _ZSTD:
            reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        while chunk := reader.read(_CHUNK):
            yield chunk


def _take_devices_out(layer: Path) -> None:
    """Nothing of an image may lead to the machine's devices."""
    for path, status in trees.walk(str(layer)):
        if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            (layer / path).unlink()


def _complete(root: Path) -> None:
    """Put in what every sandbox needs."""
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        for name in _MOUNT_POINTS:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o1777 if name == "tmp" else 0o755, dir_fd=directory)
        if stat.S_ISDIR(os.stat("tmp", dir_fd=directory, follow_symlinks=False).st_mode):
            with contextlib.suppress(FileExistsError):
                os.mkdir(_KEPT_IN_TMP, 0o1777, dir_fd=directory)
    finally:
        os.close(directory)


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    os.umask(0)
    try:
        size = asyncio.run(unpack(job))
    except (UnpackError, trees.TreeError, CommandError, OSError) as error:
        sys.exit(f"{error}")
    sys.stdout.write(json.dumps({"bytes": size}) + "\n")


if __name__ == "__main__":
    main()
