"""The machine's own package sources, read so that another release can be had from the same places.

No mirror's address is written in Alcove: what the machine uses is what its images are built from.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

_ONE_LINE = re.compile(
    r"deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.+)"
)
_SIGNED_BY = re.compile(r"signed-by=(\S+)", re.IGNORECASE)
_POCKETS = ("", "-updates", "-security")
_KEYRINGS = {
    "debian": "/usr/share/keyrings/debian-archive-keyring.gpg",
    "ubuntu": "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
}
"""Installed in every image of the distribution, so it serves the machine and the image alike."""


class AptSourcesError(Exception):
    """The machine's package sources do not serve what an image needs."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Which distribution this machine runs."""

    distribution: str
    """ID of os-release: "debian" or "ubuntu"."""
    suite: str
    """VERSION_CODENAME: "bookworm"."""


@dataclass(frozen=True, slots=True)
class Source:
    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str = ""
    """Path of a keyring, or the key itself; empty when any key the machine trusts will do."""

    def line(self) -> str:
        components = " ".join(self.components)
        return f"deb [signed-by={self.signed_by}] {self.uri} {self.suite} {components}"


def read_machine(os_release: Path = Path("/etc/os-release")) -> Machine:
    fields = dict(line.split("=", 1) for line in os_release.read_text().splitlines() if "=" in line)
    values = {name: value.strip("\"'") for name, value in fields.items()}
    return Machine(values.get("ID", ""), values.get("VERSION_CODENAME", ""))


def lines_for(machine: Machine, suite: str, apt: Path = Path("/etc/apt")) -> list[str]:
    """One-line sources of `suite` (with its updates and security pockets) from where this machine
    gets its own. Raises AptSourcesError when it gets them from nowhere we understand.
    """
    keyring = _KEYRINGS.get(machine.distribution)
    if keyring is None:
        raise AptSourcesError(
            f"images can be built on Debian and Ubuntu, and this is {machine.distribution!r}"
        )
    wanted: dict[Source, None] = {}
    for source in read_sources(apt):
        pocket = source.suite.removeprefix(machine.suite)
        if pocket not in _POCKETS or not source.suite.startswith(machine.suite):
            continue
        # Others' archives (Docker, PPAs) have the same suites and keys of their own.
        if source.signed_by in {"", keyring}:
            uri = _resolve_mirror_list(source.uri)
            wanted[replace(source, uri=uri, suite=suite + pocket, signed_by=keyring)] = None
    if not any(source.suite == suite for source in wanted):
        raise AptSourcesError(
            f"no package source under {apt} serves {machine.suite}; "
            "add the distribution's archive to the machine's apt sources"
        )
    return [source.line() for source in wanted]


def read_sources(apt: Path) -> Iterator[Source]:
    """Every enabled binary source of the machine, in apt's order."""
    parts = sorted((apt / "sources.list.d").glob("*"))
    for path in [apt / "sources.list", *parts]:
        if not path.is_file():
            continue
        if path.suffix == ".list":
            yield from _one_line(path.read_text())
        elif path.suffix == ".sources":
            yield from _deb822(path.read_text())


def _one_line(text: str) -> Iterator[Source]:
    for line in text.splitlines():
        if match := _ONE_LINE.match(line.split("#")[0].strip()):
            signed_by = _SIGNED_BY.search(match["options"] or "")
            yield Source(
                match["uri"],
                match["suite"],
                tuple(match["components"].split()),
                signed_by[1] if signed_by else "",
            )


def _deb822(text: str) -> Iterator[Source]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields[name] = f"{fields.get(name, '')} {line.strip()}"
            elif ":" in line:
                name, value = line.split(":", 1)
                name = name.lower()
                fields[name] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled") == "no":
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                components = tuple(fields.get("components", "").split())
                yield Source(uri, suite, components, fields.get("signed-by", ""))


def _resolve_mirror_list(uri: str) -> str:
    """Cloud images name a file with mirrors in it, which no image of ours has."""
    if not uri.startswith("mirror+file:"):
        return uri
    path = Path("/" + uri.removeprefix("mirror+file:").lstrip("/"))
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            return line.split()[0]
    raise AptSourcesError(f"{path}, which the machine's apt sources name, lists no mirror")
