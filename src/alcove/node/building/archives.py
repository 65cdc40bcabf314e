"""Images that were sent as one file: an archive in OCI's or Docker's form, in the object store.

It is named by the SHA-256 of the file, as the files of a COPY are: "archive:<64 hex digits>".
"""

import asyncio
import hashlib
from pathlib import Path

from alcove.node.building.registries import ImageError
from alcove.storage import Storage, StorageError
from alcove.wire.builds import ARCHIVE_SCHEME as SCHEME

__all__ = ["SCHEME", "kinds", "receive"]

_MAGIC_AT, _MAGIC = 257, b"ustar"
_OCI, _DOCKER = "oci-archive", "docker-archive"
_BLOCK = 512
_LOOKED_AT = 1000


async def receive(storage: Storage, key: str, digest: str, into: Path) -> None:
    """Copy an archive out of the object store. Raises ImageError if it is another one."""
    found = hashlib.sha256()
    try:
        with into.open("wb") as file:
            async for chunk in storage.get(key):
                await asyncio.to_thread(file.write, chunk)
                await asyncio.to_thread(found.update, chunk)
    except StorageError as error:
        raise ImageError(f"the archive {digest[:12]} cannot be read: {error}") from error
    if found.hexdigest() != digest:
        raise ImageError(
            f"the archive {digest[:12]} is damaged: what was sent has the SHA-256"
            f" {found.hexdigest()}"
        )


def kinds(archive: Path) -> list[str]:
    """What skopeo may find in it, by the names at its beginning. Raises ImageError."""
    names: list[bytes] = []
    with archive.open("rb") as file:
        while len(names) < _LOOKED_AT:
            header = file.read(_BLOCK)
            if len(header) < _BLOCK or not header.strip(b"\0"):
                break
            if header[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
                break
            names.append(header[:100].split(b"\0")[0].removeprefix(b"./"))
            try:
                size = int(header[124:136].strip(b"\0 ") or b"0", 8)
            except ValueError:
                break
            file.seek(-(-size // _BLOCK) * _BLOCK, 1)
    # Some archives are both.
    found = [
        kind for kind, name in ((_OCI, b"oci-layout"), (_DOCKER, b"manifest.json")) if name in names
    ]
    if not found:
        raise ImageError(
            "the archive is no image: it must be a tar, not compressed, as `docker save` or"
            " `skopeo copy … oci-archive:FILE` write it"
        )
    return found
