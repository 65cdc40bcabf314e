"""Root file systems of templates, made by mmdebstrap from a recipe.

A recipe with a parent starts from a copy of the parent's finished root file system, which is made
first if it is not there.

    <data>/images/rootfs/<digest>/root/            read-only once made, shared by all sandboxes
                                  manifest.json    packages, versions and where they came from
    <data>/images/rootfs/.new-*                    being made; left by a crash, removed by the next

The digest is made of everything the result depends on but the archive's own state. All work is done
in a private mount and PID namespace that dies with this process, so nothing is left mounted.
"""

import asyncio
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from alcove._version import __version__
from alcove.node import apt_sources, mmdebstrap
from alcove.node.cgroups import Cgroup
from alcove.node.egress import GATEWAY_ADDRESS
from alcove.node.recipes import Recipe
from alcove.node.roots import NEW, RootfsError, Roots
from alcove.node.run import CommandError, follow, run

_FORMAT = "3"
_TIME_LIMIT_S = 2 * 3600.0
"""Of one command; an hour of compiling on a busy machine is not yet stuck."""
_BACKGROUND_CPUS = 0.1
"""A build's weight beside a sandbox's, which is its number of processors."""
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_FILES = {
    "etc/hostname": "alcove\n",
    "etc/hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    "etc/resolv.conf": f"nameserver {GATEWAY_ADDRESS}\n",
}
_MOUNT_POINTS = (".alcove", ".alcove-volumes", "dev", "proc", "sys", "run", "tmp")

Log = Callable[[str, str], None]
"""(level, line)"""


class RootfsStore(Roots):
    """The root file systems of one machine, and the making of those of recipes."""

    def __init__(self, data_dir: Path, extra_ca_pem: str, group: str) -> None:
        """`group`: path of the control group that builds run in."""
        super().__init__(data_dir / "images" / "rootfs")
        self._group = group
        self._authorities = _CERTIFICATE.findall(extra_ca_pem)

    async def clear(self) -> None:
        """Remove from the kernel what a build left that was killed. Not while one runs."""
        await Cgroup(self._group).remove()

    def digest(self, recipe: Recipe) -> str:
        parts = {
            "format": _FORMAT,
            "architecture": platform.machine(),
            "suite": _suite(apt_sources.read_machine(), recipe),
            "parent": "" if recipe.parent is None else self.digest(recipe.parent),
            "packages": sorted(recipe.packages),
            "files": {str(name): _hash(recipe.directory / name) for name in recipe.files()},
            "dpkg": mmdebstrap.DPKG_OPTIONS,
            "authorities": self._authorities,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]

    async def ensure(self, recipe: Recipe, log: Log) -> str:
        """The digest of the recipe's root file system, which is made if it is not there."""
        digest = await asyncio.to_thread(self.digest, recipe)
        # One at a time: each would use the whole machine.
        async with self._building:
            await self._ensure(recipe, digest, log)
        return digest

    async def _ensure(self, recipe: Recipe, digest: str, log: Log) -> None:
        if await asyncio.to_thread(self.is_usable, digest):
            log("info", f"root file system of {recipe.name} is already there")
            return
        start = None
        if recipe.parent is not None:
            parent = await asyncio.to_thread(self.digest, recipe.parent)
            await self._ensure(recipe.parent, parent, log)
            start = self.path(parent)
        await self._build(recipe, digest, start, log)

    async def _build(self, recipe: Recipe, digest: str, start: Path | None, log: Log) -> None:
        """`start`: the root file system to begin from; None for nothing."""
        work = await asyncio.to_thread(self._new_directory)
        try:
            await asyncio.to_thread(self._check_space, recipe)
            async with self._background() as group:
                await self._fill(recipe, start, work, group, log)
            await asyncio.to_thread(os.rename, work, self._directory / digest)
        except Exception:
            # Not when the node stops, which must not wait for gigabytes: the next build does it.
            await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)
            raise

    async def _fill(
        self, recipe: Recipe, start: Path | None, work: Path, group: Cgroup, log: Log
    ) -> None:
        machine = apt_sources.read_machine()
        suite = _suite(machine, recipe)
        sources = apt_sources.lines_for(machine, suite)
        root, staged = work / "root", work / "recipe"
        await asyncio.to_thread(_stage, recipe, staged)
        # What is copied has them already.
        authorities = self._authority_files(work) if start is None else []
        count = len(recipe.packages)
        log("info", f"building the {suite} root file system of {recipe.name}, {count} packages")
        try:
            if start is not None:
                log("info", "beginning with a copy of its parent's")
                await _copy(start, root, group)
            hooks = mmdebstrap.hooks(recipe, staged, authorities)
            await follow(
                await mmdebstrap.command(recipe, suite, root, hooks),
                lambda line: log(*mmdebstrap.classify(line)),
                stdin="\n".join(sources) + "\n",
                timeout_s=_TIME_LIMIT_S,
                env=await mmdebstrap.environment(),
                background=group.entry_files(),
            )
        except CommandError as error:
            raise RootfsError(
                "the root file system could not be built (see the log above); if packages or"
                " Node.js could not be fetched, check this machine's network and apt sources"
            ) from error
        await self._finish(work, recipe, suite, sources)

    def _check_space(self, recipe: Recipe) -> None:
        """Say before an hour's work that it cannot end well. Raises RootfsError."""
        needed_mib = recipe.build_mib
        if recipe.parent is not None:
            needed_mib += self.size_bytes(self.digest(recipe.parent)) >> 20
        free_mib = shutil.disk_usage(self._directory).free >> 20
        if free_mib < needed_mib:
            raise RootfsError(
                f"building template {recipe.name} takes about {needed_mib} MiB of disk and"
                f" {free_mib} MiB are free in {self._directory}; free some, or choose a larger disk"
                " with --data-dir"
            )

    @asynccontextmanager
    async def _background(self) -> AsyncIterator[Cgroup]:
        """A control group in which a build gets the processor time that sandboxes leave."""
        group = Cgroup(self._group)
        group.create()
        group.weigh(_BACKGROUND_CPUS)
        try:
            yield group
        finally:
            await group.remove()

    def _new_directory(self) -> Path:
        # Private to root: it holds set-user-id programs.
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in self._directory.glob(f"{NEW}*"):
            shutil.rmtree(left, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=NEW, dir=self._directory))

    def _authority_files(self, work: Path) -> list[Path]:
        """One certificate a file, as update-ca-certificates takes them."""
        files = []
        for number, certificate in enumerate(self._authorities):
            files.append(work / f"machine-{number}.crt")
            files[-1].write_text(certificate + "\n")
        return files

    async def _finish(self, work: Path, recipe: Recipe, suite: str, sources: list[str]) -> None:
        root = work / "root"
        listing = await run(
            ["dpkg-query", f"--admindir={root}/var/lib/dpkg", "-W", "-f", "${Package} ${Version}\n"]
        )
        manifest = {
            "recipe": recipe.name,
            "parent": "" if recipe.parent is None else self.digest(recipe.parent),
            "suite": suite,
            "architecture": platform.machine(),
            "alcove": __version__,
            "built_at": time.time(),
            "files_sha256": {str(name): _hash(recipe.directory / name) for name in recipe.files()},
            "extra_authorities": len(self._authorities),
            "packages": dict(line.split() for line in listing.stdout.splitlines()),
        }
        await asyncio.to_thread(shutil.rmtree, work / "recipe", ignore_errors=True)
        await asyncio.to_thread(_settle, root, sources)
        manifest["bytes"] = await asyncio.to_thread(_bytes_used, root)
        (work / "manifest.json").write_text(json.dumps(manifest, indent=1))


def _stage(recipe: Recipe, into: Path) -> None:
    """Copy what provision.sh may read, as everybody in the new root may read it."""
    for name in recipe.files():
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(recipe.directory / name, target)
        target.chmod(0o755 if os.access(recipe.directory / name, os.X_OK) else 0o644)
    (into / recipe.provision.name).chmod(0o755)
    for directory in (into, *(path for path in into.rglob("*") if path.is_dir())):
        directory.chmod(0o755)


async def _copy(start: Path, root: Path, group: Cgroup) -> None:
    """A root file system to go on from, without what ours has instead of the machine's."""
    await follow(
        ["cp", "-a", "--reflink=auto", str(start), str(root)],
        lambda _: None,
        timeout_s=_TIME_LIMIT_S,
        background=group.entry_files(),
    )
    # mmdebstrap takes these from the machine, whose network the build uses, unless they are there.
    for name in ("etc/hostname", "etc/resolv.conf", "etc/apt/sources.list"):
        (root / name).unlink()


def _settle(root: Path, sources: list[str]) -> None:
    """Leave the root as a sandbox needs it, without traces of the machine it was made on."""
    for name in _MOUNT_POINTS:
        (root / name).mkdir(exist_ok=True)
    # runsc mounts memory over an empty /tmp: what is written there must count as disk.
    kept = root / "tmp/.X11-unix"
    kept.mkdir(exist_ok=True)
    kept.chmod(0o1777)
    # Sandboxes bring their own /dev, and nodes on the machine's disk are a way to its devices.
    for entry in (root / "dev").iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    for name, text in _FILES.items():
        path = root / name
        path.unlink(missing_ok=True)
        path.write_text(text)
    (root / "etc/apt/apt.conf.d/99mmdebstrap").unlink(missing_ok=True)
    without_passwords = [re.sub(r"//[^/@\s]+@", "//", line) for line in sources]
    (root / "etc/apt/sources.list").write_text("\n".join(without_passwords) + "\n")


def _bytes_used(root: Path) -> int:
    total = 0
    for directory, _, names in os.walk(root):
        total += sum(os.lstat(f"{directory}/{name}").st_blocks * 512 for name in names)
    return total


def _suite(machine: apt_sources.Machine, recipe: Recipe) -> str:
    if recipe.parent is not None:
        return _suite(machine, recipe.parent)
    try:
        return recipe.suites[machine.distribution]
    except KeyError:
        raise RootfsError(
            f"recipe {recipe.name} can be built on {' and '.join(recipe.suites)},"
            f" and this machine runs {machine.distribution or 'an unknown distribution'!r}"
        ) from None


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
