"""Root file systems from images of registries: fetched by skopeo, unpacked by umoci.

    name ──▶ digest ──▶ is its root there? ──no──▶ layers ──▶ unpacked on a disk ──▶ root

The disk is of limited size, so a layer that inflates without end meets its end there. Device nodes
are taken out: nothing of an image may lead to the machine's devices.
"""

import asyncio
import contextlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alcove.node import disks, trees
from alcove.node.building.registries import (
    Credentials,
    ImageError,
    Reference,
    auth_file,
    check_address,
    read_reference,
)
from alcove.node.run import CommandError, follow, run

_ASK_LIMIT_S = 60.0
_FETCH_LIMIT_S = 1800.0
_UNPACK_LIMIT_S = 1800.0
_LAYOUT, _TAG = "layout", "image"
_WORK = "image-"
_MOST_CONFIG_BYTES = 4 << 20
_ZSTD = "zstd"
_MOUNT_POINTS = (".alcove", "dev", "proc", "sys", "run", "tmp")
_KEPT_IN_TMP = "tmp/.X11-unix"
"""runsc mounts memory over an empty /tmp: what is written there must count as disk."""
_REFUSALS = (
    ("unauthorized", "the registry wants other credentials, or there is no such image"),
    ("authentication required", "the registry wants credentials, or there is no such image"),
    ("denied", "the registry wants other credentials, or there is no such image"),
    ("invalid username/password", "the registry refuses the credentials"),
    ("manifest unknown", "there is no such image"),
    ("name unknown", "there is no such image"),
    ("no image found in manifest list", "it has no variant for this machine's architecture"),
    ("no image found in image index", "it has no variant for this machine's architecture"),
    ("no such host", "the registry cannot be found"),
    ("connection refused", "the registry does not answer"),
    ("timeout", "the registry does not answer in time"),
    ("no space left", "the image is larger than the template's disk"),
)

Say = Callable[[str, str], None]
"""Takes a log level and a line."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    root: Path
    """To be copied; it goes when the block ends."""
    env: dict[str, str]
    size_bytes: int


class ImageFetcher:
    """Fetches images for one machine. Everything raises ImageError."""

    def __init__(self, data_dir: Path, trusted: Sequence[str]) -> None:
        """`trusted`: registries that may have private addresses and no TLS, "host:port" each."""
        self._directory = data_dir / "images" / "fetching"
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._trusted = trusted

    async def remove_remains(self) -> None:
        """Remove what a crash left; before anything is fetched."""
        for path in self._directory.iterdir():
            await disks.remove(path)
            await trees.remove(path)

    async def digest(self, name: str, credentials: Credentials | None) -> str:
        """The digest of what a name means now."""
        if not await asyncio.to_thread(_is_available):
            raise ImageError(
                "this machine cannot fetch images: skopeo and umoci are not installed; bin/packages"
                " installs them"
            )
        reference = read_reference(name)
        async with self._access(reference, credentials) as (_, options):
            argv = ["skopeo", "inspect", "--no-tags", "--format={{.Digest}}"]
            argv += [*options, f"docker://{reference}"]
            return (await _asked(reference, argv)).strip()

    @asynccontextmanager
    async def unpacked(
        self, name: str, digest: str, credentials: Credentials | None, most_mib: int, say: Say
    ) -> AsyncIterator[Unpacked]:
        """Fetch what `digest` says and unpack it on a disk of this size, while the block runs."""
        reference = read_reference(name)
        async with self._access(reference, credentials) as (work, options):
            layout = work / _LAYOUT
            source = f"docker://{reference.at(digest)}"
            await _copy(reference, source, layout, options, say)
            config = await asyncio.to_thread(_config, layout)
            disk = await disks.create(work, most_mib)
            await _unpack(reference, layout, disk / "root", say)
            size = await asyncio.to_thread(_settle, disk / "root")
            yield Unpacked(disk / "root", _environment(config), size)

    @asynccontextmanager
    async def _access(
        self, reference: Reference, credentials: Credentials | None
    ) -> AsyncIterator[tuple[Path, list[str]]]:
        """A directory to work in, and skopeo's options for this registry."""
        plain = await check_address(reference, self._trusted)
        work = Path(await asyncio.to_thread(tempfile.mkdtemp, "", _WORK, self._directory))
        try:
            # Not the machine's own credentials: they are not its tenants'.
            file = work / "auth.json"
            text = '{"auths": {}}'
            if credentials is not None:
                text = auth_file(reference, *await credentials.login(reference))
            await asyncio.to_thread(_write_private, file, text)
            yield work, [f"--authfile={file}", f"--tls-verify={'false' if plain else 'true'}"]
        finally:
            await asyncio.shield(_leave(work))


async def _leave(work: Path) -> None:
    await disks.remove(work)
    await trees.remove(work)


async def _copy(
    reference: Reference, source: str, layout: Path, options: list[str], say: Say
) -> None:
    """Fetch an image into a directory in OCI's layout, with layers that umoci can read."""
    access = [option.replace("--tls-verify", "--src-tls-verify") for option in options]
    argv = ["skopeo", "--insecure-policy", "copy", "--quiet", *access]
    say("info", f"Fetching {reference}")
    await _done(reference, [*argv, source, f"oci:{layout}:{_TAG}"], _FETCH_LIMIT_S)
    if _ZSTD not in await asyncio.to_thread(_layer_types, layout):
        return
    # Through an archive of plain layers, as umoci 0.4 does not know this compression.
    archive = layout.with_name("plain.tar")
    convert = ["skopeo", "--insecure-policy", "copy", "--quiet"]
    await _done(
        reference, [*convert, f"oci:{layout}:{_TAG}", f"docker-archive:{archive}"], _FETCH_LIMIT_S
    )
    await trees.remove(layout)
    plain = "--dest-oci-accept-uncompressed-layers"
    await _done(
        reference,
        [*convert, plain, f"docker-archive:{archive}", f"oci:{layout}:{_TAG}"],
        _FETCH_LIMIT_S,
    )
    await trees.remove(archive)


async def _unpack(reference: Reference, layout: Path, root: Path, say: Say) -> None:
    say("info", "Unpacking the image")
    argv = ["umoci", "raw", "unpack", f"--image={layout}:{_TAG}", str(root)]
    await _done(reference, argv, _UNPACK_LIMIT_S)


async def _done(reference: Reference, argv: list[str], limit_s: float) -> None:
    try:
        await follow(argv, lambda _: None, timeout_s=limit_s)
    except CommandError as error:
        raise _refusal(reference, error) from error


async def _asked(reference: Reference, argv: list[str]) -> str:
    try:
        return (await run(argv, timeout_s=_ASK_LIMIT_S)).stdout
    except CommandError as error:
        raise _refusal(reference, error) from error


def _refusal(reference: Reference, error: CommandError) -> ImageError:
    """What a failure means, in words that show neither our directories nor credentials."""
    said = error.output.lower()
    for words, meaning in _REFUSALS:
        if words in said:
            return ImageError(f"the image {reference} cannot be used: {meaning}")
    last = error.output.strip().rpartition("\n")[2]
    return ImageError(f"the image {reference} cannot be used: {last[-300:]}")


def _layer_types(layout: Path) -> str:
    return " ".join(str(layer.get("mediaType")) for layer in _manifest(layout).get("layers", ()))


def _config(layout: Path) -> dict[str, Any]:
    found = _blob(layout, _manifest(layout)["config"]["digest"]).get("config")
    return found if isinstance(found, dict) else {}


def _manifest(layout: Path) -> dict[str, Any]:
    index = json.loads((layout / "index.json").read_text())
    return _blob(layout, index["manifests"][0]["digest"])


def _blob(layout: Path, digest: str) -> dict[str, Any]:
    kind, _, name = digest.partition(":")
    path = layout / "blobs" / Path(kind).name / Path(name).name
    if path.stat().st_size > _MOST_CONFIG_BYTES:
        raise ImageError("the image describes itself in more bytes than are allowed")
    data = json.loads(path.read_text())
    if not isinstance(data, dict):
        raise ImageError("the image does not describe itself as images do")
    return data


def _environment(config: dict[str, Any]) -> dict[str, str]:
    pairs = (str(entry).partition("=") for entry in config.get("Env") or ())
    return {name: value for name, equals, value in pairs if equals and name}


def _settle(root: Path) -> int:
    """Take devices out and put in what every sandbox needs; the size in bytes."""
    total = 0
    for path, status in trees.walk(str(root)):
        if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            (root / path).unlink()
        else:
            total += status.st_blocks * 512
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
    return total


def _write_private(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _is_available() -> bool:
    """Whether the programs that fetch images are installed."""
    return all(shutil.which(program) for program in ("skopeo", "umoci"))
