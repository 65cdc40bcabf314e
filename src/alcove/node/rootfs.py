"""Root file systems of templates, made by mmdebstrap from a recipe.

A recipe with a parent starts from a copy of the parent's finished root file system, which is made
first if it is not there.

    <data>/images/rootfs/<digest>/root/            read-only once made, shared by all sandboxes
                                  manifest.json    packages, versions and where they came from
    <data>/images/rootfs/.new-*                    being made; left by a crash, removed by the next

The digest is made of everything the result depends on but the archive's own state. All work is done
in a private mount and PID namespace that dies with this process, so nothing is left mounted.
"""

import ast
import asyncio
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from alcove._version import __version__
from alcove.node import apt_sources
from alcove.node.egress import GATEWAY_ADDRESS
from alcove.node.recipes import Recipe
from alcove.node.run import CommandError, follow, run

_FORMAT = "3"
_TIME_LIMIT_S = 30 * 60.0
_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Stay in the image, so that what its users install later is as lean and quick.
_DPKG_OPTIONS = (
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/man/*",
    # pip installs for everybody in a sandbox; the mark would make it refuse.
    "path-exclude=/usr/lib/python3*/EXTERNALLY-MANAGED",
    "force-unsafe-io",
)
# Settings of the machine's apt that its network may need; used for the build only.
_APT_SETTING = re.compile(r"Acquire::(https?::Proxy|https::CaInfo|Check-Date|Check-Valid-Until) ")
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "proxy")

# As mmdebstrap installs: apt of the machine, with its network, and dpkg of the new root.
_INSTALL = (
    'APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get --yes --quiet -o Dir::Bin::dpkg=env'
    " -o DPkg::Options::=--unset=APT_CONFIG -o DPkg::Options::=dpkg"
    ' -o DPkg::Chroot-Directory="$1" install '
)

_FILES = {
    "etc/hostname": "alcove\n",
    "etc/hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    "etc/resolv.conf": f"nameserver {GATEWAY_ADDRESS}\n",
}
_RECIPE_DIR = ".alcove-recipe"
"""Where provision.sh finds its folder, in the new root and only while it runs."""
_MOUNT_POINTS = (".alcove", "dev", "proc", "sys", "run", "tmp")

Log = Callable[[str, str], None]
"""(level, line)"""


class RootfsError(Exception):
    """A root file system could not be made; the message says why and what to do."""


class RootfsStore:
    """The root file systems of one machine."""

    def __init__(self, data_dir: Path, extra_ca_pem: str) -> None:
        self._directory = data_dir / "images" / "rootfs"
        self._authorities = _CERTIFICATE.findall(extra_ca_pem)
        self._building = asyncio.Lock()

    def path(self, digest: str) -> Path:
        return self._directory / digest / "root"

    def digest(self, recipe: Recipe) -> str:
        parts = {
            "format": _FORMAT,
            "architecture": platform.machine(),
            "suite": _suite(apt_sources.read_machine(), recipe),
            "parent": "" if recipe.parent is None else self.digest(recipe.parent),
            "packages": sorted(recipe.packages),
            "files": {str(name): _hash(recipe.directory / name) for name in recipe.files()},
            "dpkg": _DPKG_OPTIONS,
            "authorities": self._authorities,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]

    def size_bytes(self, digest: str) -> int:
        manifest = self._directory / digest / "manifest.json"
        return int(json.loads(manifest.read_text())["bytes"])

    async def ensure(self, recipe: Recipe, log: Log) -> str:
        """The digest of the recipe's root file system, which is made if it is not there."""
        digest = await asyncio.to_thread(self.digest, recipe)
        # One at a time: each would use the whole machine.
        async with self._building:
            await self._ensure(recipe, digest, log)
        return digest

    def collect(self, keep: set[str]) -> None:
        """Remove root file systems whose digest is not in `keep`, and interrupted builds."""
        if not self._directory.is_dir():
            return
        for path in self._directory.iterdir():
            if path.name not in keep:
                shutil.rmtree(path, ignore_errors=True)

    async def _ensure(self, recipe: Recipe, digest: str, log: Log) -> None:
        if await asyncio.to_thread(self.path(digest).is_dir):
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
        machine = apt_sources.read_machine()
        suite = _suite(machine, recipe)
        sources = apt_sources.lines_for(machine, suite)
        work = await asyncio.to_thread(self._new_directory)
        root = work / "root"
        try:
            await asyncio.to_thread(_stage, recipe, work / "recipe")
            count = len(recipe.packages)
            log("info", f"building the {suite} root file system of {recipe.name}, {count} packages")
            try:
                if start is not None:
                    log("info", "beginning with a copy of its parent's")
                    await _copy(start, root)
                await follow(
                    await _mmdebstrap(recipe, suite, root, self._hooks(recipe, work)),
                    lambda line: log(*_classify(line)),
                    stdin="\n".join(sources) + "\n",
                    timeout_s=_TIME_LIMIT_S,
                    env=await _environment(),
                )
            except CommandError as error:
                raise RootfsError(
                    "the root file system could not be built (see the log above); if packages or"
                    " Node.js could not be fetched, check this machine's network and apt sources"
                ) from error
            await self._finish(work, recipe, suite, sources)
            os.rename(work, self._directory / digest)  # noqa: PTH104
        finally:
            await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)

    def _new_directory(self) -> Path:
        # Private to root: it holds set-user-id programs.
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in self._directory.glob(".new-*"):
            shutil.rmtree(left, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=".new-", dir=self._directory))

    def _hooks(self, recipe: Recipe, work: Path) -> Iterator[str]:
        """Shell commands mmdebstrap runs on the machine, with the new root in $1."""
        if recipe.parent is not None and recipe.packages:
            yield _INSTALL + shlex.join(recipe.packages)
        if self._authorities and recipe.parent is None:
            # update-ca-certificates takes one certificate a file.
            for number, certificate in enumerate(self._authorities):
                (work / f"machine-{number}.crt").write_text(certificate + "\n")
            target = '"$1"/usr/local/share/ca-certificates'
            yield f"mkdir -p {target} && mv {shlex.quote(str(work))}/machine-*.crt {target}/"
            yield 'chroot "$1" update-ca-certificates'
        yield f'mv {shlex.quote(str(work / "recipe"))} "$1"/{_RECIPE_DIR}'
        yield f'ALCOVE_RECIPE_DIR=/{_RECIPE_DIR} chroot "$1" /{_RECIPE_DIR}/provision.sh'
        yield f'rm -rf "$1"/{_RECIPE_DIR}'

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


async def _copy(start: Path, root: Path) -> None:
    """A root file system to go on from, without what ours has instead of the machine's."""
    await follow(
        ["cp", "-a", "--reflink=auto", str(start), str(root)],
        lambda _: None,
        timeout_s=_TIME_LIMIT_S,
    )
    # mmdebstrap takes these from the machine, whose network the build uses, unless they are there.
    for name in ("etc/hostname", "etc/resolv.conf", "etc/apt/sources.list"):
        (root / name).unlink()


async def _mmdebstrap(recipe: Recipe, suite: str, root: Path, hooks: Iterator[str]) -> list[str]:
    settings = (await run(["apt-config", "dump"])).stdout.splitlines()
    apt_options = [
        'APT::Install-Recommends "false";',
        # The directory is private to root, so apt's own user could not download into it.
        'APT::Sandbox::User "root";',
        *filter(_APT_SETTING.match, settings),
    ]
    if recipe.parent is None:
        kind = ["--variant=apt", f"--include={','.join(recipe.packages)}"]
    else:
        # What mmdebstrap would include in a root it did not make, it unpacks over all that is
        # there; a hook has apt install it.
        kind = ["--variant=custom", "--skip=check/empty"]
    return [
        *("mmdebstrap", "--mode=root", "--format=directory", *kind),
        *(f"--aptopt={option}" for option in apt_options),
        *(f"--dpkgopt={option}" for option in _DPKG_OPTIONS),
        *(f"--customize-hook={hook}" for hook in hooks),
        *(suite, str(root), "-"),
    ]


async def _environment() -> dict[str, str]:
    """What mmdebstrap and provision.sh see: how this machine reaches the package indexes."""
    environment = {
        "PATH": _SEARCH_PATH,
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "NODE_EXTRA_CA_CERTS": "/etc/ssl/certs/ca-certificates.crt",
    }
    for scheme, address in urllib.request.getproxies().items():
        environment[f"{scheme}_proxy"] = address
    pip = await run([sys.executable, "-m", "pip", "config", "list"], check=False)
    for line in pip.stdout.splitlines():
        setting, _, value = line.partition("=")
        name = setting.rpartition(".")[2]
        if name in _PIP_SETTINGS:
            # Directories of this machine are not there inside the new root.
            words = [
                word for word in _literal(value).split() if not word.startswith(("file:", "/"))
            ]
            if words:
                environment[f"PIP_{name.upper().replace('-', '_')}"] = " ".join(words)
    if shutil.which("npm"):
        registry = (await run(["npm", "config", "get", "registry"], check=False)).stdout.strip()
        if registry.startswith("http"):
            environment["NPM_CONFIG_REGISTRY"] = registry
    return environment


def _literal(text: str) -> str:
    try:
        return str(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return text


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


_NOISE = re.compile(
    r"(Get:\d|Hit:\d|Selecting |Preparing |Unpacking |Setting up |Processing |\(|rehash: warning"
    r"|I: (chroot architecture|finding correct|reading sources|running --customize-hook))"
)


def _classify(line: str) -> tuple[str, str]:
    """Level and text of a line that mmdebstrap, apt, dpkg or provision.sh printed."""
    if _NOISE.match(line):
        return "debug", line
    level = {"W: ": "warn", "E: ": "error"}.get(line[:3], "info")
    return level, line[3:] if line[:3] in {"I: ", "W: ", "E: "} else line


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
