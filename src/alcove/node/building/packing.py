"""A root file system as the one layer of an image: a program of its own.

    python -m alcove.node.building.packing ROOT FILE

Writes the layer, a tar compressed with zstd, and prints {"diff_id", "digest", "bytes"}.
"""

import asyncio
import hashlib
import json
import sys
from pathlib import Path

import zstandard

_CHUNK = 1 << 20
_LEVEL = 1
"""Three times as fast as the usual level, and a tenth larger."""
_TAR = [
    *("tar", "--create", "--file=-", "--format=posix", "--sort=name", "--sparse"),
    *("--numeric-owner", "--xattrs", "--xattrs-include=security.capability"),
    "--xattrs-include=user.*",
]


class PackError(Exception):
    """The root could not be read."""


async def pack(root: Path, into: Path) -> dict[str, str | int]:
    """Raises PackError, OSError."""
    process = await asyncio.create_subprocess_exec(
        *_TAR,
        f"--directory={root}",
        ".",
        stdout=asyncio.subprocess.PIPE,
        limit=4 * _CHUNK,
    )
    assert process.stdout is not None
    content, compressed, size = hashlib.sha256(), hashlib.sha256(), 0
    packer = zstandard.ZstdCompressor(level=_LEVEL).compressobj()

    def work(chunk: bytes) -> bytes:
        content.update(chunk)
        packed = packer.compress(chunk) if chunk else packer.flush()
        compressed.update(packed)
        return packed

    with into.open("wb") as file:
        while chunk := await process.stdout.read(_CHUNK):
            size += file.write(work(chunk))
        size += file.write(work(b""))
    if await process.wait():
        raise PackError(f"tar ended with {process.returncode}")
    return {
        "diff_id": f"sha256:{content.hexdigest()}",
        "digest": f"sha256:{compressed.hexdigest()}",
        "bytes": size,
    }


def main() -> None:
    try:
        packed = asyncio.run(pack(Path(sys.argv[1]), Path(sys.argv[2])))
    except (PackError, OSError) as error:
        sys.exit(str(error))
    sys.stdout.write(json.dumps(packed) + "\n")


if __name__ == "__main__":
    main()
