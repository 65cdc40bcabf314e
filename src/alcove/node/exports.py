"""A template as one file: an archive in OCI's layout, with one layer and a label.

    oci-layout, index.json                   what OCI's image-layout says
    blobs/sha256/<configuration>             environment, user, and the label TEMPLATE_LABEL: JSON
                                             of how it starts and how large it is
    blobs/sha256/<manifest>, <layer>

Any tool for images can read it, and every part is named by its checksum. The layer is compressed
into a file first, as the archive says sizes before contents; no more of it is in memory than a
part.
"""

import asyncio
import hashlib
import json
import platform
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alcove.node import trees
from alcove.node.image_records import ImageRecord
from alcove.node.run import follow
from alcove.wire.builds import TEMPLATE_LABEL

_PART = 1 << 20
_BLOCK = 512
_LIMIT_S = 3600.0
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+zstd"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class _Packed:
    diff_id: str
    digest: str
    bytes: int


class Exports:
    """Makes archives, one at a time: each takes a processor."""

    def __init__(self, data_dir: Path) -> None:
        self._directory = data_dir / "images" / "exports"
        self._turn = asyncio.Lock()

    async def remove_remains(self) -> None:
        """Remove what a crash left; before anything is exported."""
        await trees.remove(self._directory)

    async def make(
        self, root: Path, record: ImageRecord, digest: str
    ) -> tuple[int, AsyncIterator[bytes]]:
        """The length of the archive of a build, and its parts. Raises CommandError.

        `digest`: of the inventory of its root.
        """
        async with self._turn:
            work = await asyncio.to_thread(self._new_directory)
            try:
                layer = work / "layer"
                packed = await _pack(root, layer)
            except BaseException:
                await asyncio.shield(trees.remove(work))
                raise
        before, after = _around(packed, record, digest)
        length = len(before) + packed.bytes + len(after)
        return length, _parts(work, before, layer, after)

    def _new_directory(self) -> Path:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=self._directory))


async def _pack(root: Path, layer: Path) -> _Packed:
    program = [sys.executable, "-m", "alcove.node.building.packing", str(root), str(layer)]
    said: list[str] = []
    await follow(["nice", "-n", "5", *program], said.append, timeout_s=_LIMIT_S)
    return _Packed(**json.loads(said[-1]))


async def _parts(work: Path, before: bytes, layer: Path, after: bytes) -> AsyncIterator[bytes]:
    try:
        yield before
        with layer.open("rb") as file:
            while part := await asyncio.to_thread(file.read, _PART):
                yield part
        yield after
    finally:
        await asyncio.shield(trees.remove(work))


def _around(packed: _Packed, record: ImageRecord, digest: str) -> tuple[bytes, bytes]:
    """What stands before the content of the layer, and after it."""
    config = json.dumps(_config(packed, record, digest)).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _descriptor(_CONFIG, config),
            "layers": [{"mediaType": _LAYER, "digest": packed.digest, "size": packed.bytes}],
        }
    ).encode()
    index = {
        "schemaVersion": 2,
        "mediaType": _INDEX,
        "manifests": [_descriptor(_MANIFEST, manifest)],
    }
    before = _file("oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
    before += _file("index.json", json.dumps(index).encode())
    before += _file(_blob(_digest(config)), config)
    before += _file(_blob(_digest(manifest)), manifest)
    before += _header(_blob(packed.digest), packed.bytes)
    return before, bytes(-packed.bytes % _BLOCK + 2 * _BLOCK)


def _config(packed: _Packed, record: ImageRecord, digest: str) -> dict[str, Any]:
    startup, spec = record.startup, record.spec
    label = asdict(startup) | {
        "format": FORMAT,
        "vcpu_count": spec.vcpu_count,
        "memory_mib": spec.memory_mib,
        "disk_mib": spec.disk_mib,
        "build_id": spec.build_id,
        "digest": digest,
    }
    machine = platform.machine()
    return {
        "architecture": _ARCHITECTURES.get(machine, machine),
        "os": "linux",
        "config": {
            "Env": [f"{name}={value}" for name, value in startup.env.items()],
            "User": startup.user,
            "WorkingDir": startup.workdir,
            "Labels": {TEMPLATE_LABEL: json.dumps(label)},
        },
        "rootfs": {"type": "layers", "diff_ids": [packed.diff_id]},
        "history": [{"created_by": "alcove template export"}],
    }


def _descriptor(kind: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": _digest(content), "size": len(content)}


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _file(name: str, content: bytes) -> bytes:
    return _header(name, len(content)) + content + bytes(-len(content) % _BLOCK)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT)
