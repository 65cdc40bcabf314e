"""Debian and Ubuntu without a registry: made of packages, from the machine's own sources.

What Docker's images of these names hold, mmdebstrap makes too: the packages that are essential, and
apt. A machine can make the releases of its own distribution: for another it has neither sources nor
keys.
"""

from dataclasses import dataclass
from pathlib import Path

from alcove.node import apt_sources
from alcove.node.building.registries import ImageError, read_reference
from alcove.node.recipes import Recipe

_LIBRARY = "library/"
_HUB = "docker.io"
_RELEASES = {
    "debian": {
        "bullseye": ("11",),
        "bookworm": ("12",),
        "trixie": ("13", "latest", "stable"),
    },
    "ubuntu": {
        "jammy": ("22.04",),
        "noble": ("24.04", "latest"),
    },
}
_SLIM = "-slim"
_BUILD_MIB = 1024


@dataclass(frozen=True, slots=True)
class Packaged:
    distribution: str
    suite: str


def find(image: str) -> Packaged | None:
    """What an image's name means as a release of a distribution; None for all other images.

    Raises ImageError for what is no name.
    """
    reference = read_reference(image)
    releases = _RELEASES.get(reference.path.removeprefix(_LIBRARY))
    if reference.host != _HUB or reference.digest or releases is None:
        return None
    tag = reference.tag.removesuffix(_SLIM)
    for suite, names in releases.items():
        if tag == suite or tag in names:
            return Packaged(reference.path.removeprefix(_LIBRARY), suite)
    return None


def recipe(wanted: Packaged) -> Recipe:
    """Raises ImageError where this machine cannot make it."""
    machine = apt_sources.read_machine()
    if machine.distribution != wanted.distribution:
        raise ImageError(
            f"{wanted.distribution} {wanted.suite} cannot be fetched from a registry, and not be"
            f" made of packages: this machine runs {machine.distribution or 'another system'} and"
            " has no package sources of it; build on a machine that does, or send the image as an"
            " archive"
        )
    return Recipe(
        name=f"{wanted.distribution}-{wanted.suite}",
        directory=Path(__file__).parent / "packaged_base",
        packages=["ca-certificates"],
        aliases=[],
        vcpu_count=1,
        memory_mib=512,
        disk_mib=1024,
        user="root",
        workdir="/",
        suites={wanted.distribution: wanted.suite},
        build_mib=_BUILD_MIB,
    )
