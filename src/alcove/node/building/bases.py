"""What a build stands on: a finished build of this node, or an image of a registry."""

import hashlib
import platform
from collections.abc import Callable
from dataclasses import dataclass

from alcove.node.building import provision
from alcove.node.building.context import Context
from alcove.node.building.oci import ImageFetcher
from alcove.node.building.registries import Credentials
from alcove.node.origins import Origin, Startup
from alcove.node.rootfs import RootfsStore

_FORMAT = "1"

Say = Callable[[str, str], None]
"""Takes a log level and a line."""


@dataclass(frozen=True, slots=True)
class Base:
    rootfs: str
    """Digest of the root file system."""
    startup: Startup
    context: Context
    """What the first step sees."""
    provision: str = ""
    """A script that has to run before the first step; empty where it did already."""


def of_build(origin: Origin) -> Base:
    startup = origin.startup
    context = Context(startup.user, startup.workdir, dict(startup.env))
    return Base(origin.rootfs, startup, context)


@dataclass(frozen=True, slots=True)
class Wanted:
    """An image to build on."""

    name: str
    credentials: Credentials | None
    most_mib: int
    """Larger ones are refused."""
    plain_user: bool
    """Steps run as root in /, and not as USER in WORKDIR."""


async def of_image(fetcher: ImageFetcher, rootfs: RootfsStore, wanted: Wanted, say: Say) -> Base:
    """The base that an image of a registry is, fetched if it is not there. Raises ImageError.

    The registry is asked each time: whoever may not read the image there cannot use it here.
    """
    name, credentials = wanted.name, wanted.credentials
    digest = await fetcher.digest(name, credentials)
    text = f"image:{_FORMAT}:{platform.machine()}:{digest}"
    key = hashlib.sha256(text.encode()).hexdigest()[:20]
    manifest = await rootfs.manifest_in_use(key)
    if manifest is None:
        async with fetcher.unpacked(name, digest, credentials, wanted.most_mib, say) as unpacked:
            manifest = {"image": name, "digest": digest, "env": unpacked.env}
            await rootfs.adopt(key, unpacked.root, manifest, unpacked.size_bytes)
    else:
        say("info", f"{name} is already there")
    user, workdir = ("root", "/") if wanted.plain_user else (provision.USER, provision.WORKDIR)
    context = Context(user, workdir, dict(manifest["env"]))
    return Base(key, Startup(), context, provision.SCRIPT)
