"""The guest bundle: an interpreter, its libraries and the guest agent, for any root file system.

    <data>/agent/<key>/bin/python3            the machine's own interpreter
                       lib/ld.so, lib/*.so*   its loader and libraries, so the image needs no libc
                       lib/python3X.zip       the standard library, trimmed, as bytecode
                       lib/python3.X/lib-dynload/*.so
                       guest.pyz              alcove.guest, alcove.wire and h11, as bytecode
                       bin/sudo               what users run where set-user-ID does nothing

The key is made of everything that goes in, so a bundle never changes; it appears by rename.
"""

import asyncio
import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import alcove
from alcove.node.drivers.driver import AGENT_ARGV
from alcove.node.run import CommandError, run

_log = logging.getLogger(__name__)

SYSTEM_PYTHON = Path("/usr/bin/python3")

_FORMAT = "2"
_GUEST = Path(alcove.__file__).with_name("guest")
_PACKER = Path(__file__).with_name("pack_python.py")

# What the guest may import; everything else of lib-dynload would only drag libraries in (OpenSSL,
# SQLite, ncurses). Distributions build many of these into the interpreter: absent is fine.
_EXTENSIONS = """
    _asyncio _bisect _blake2 _contextvars _csv _ctypes _datetime _heapq _json _md5 _opcode _pickle
    _posixsubprocess _queue _random _sha1 _sha2 _sha256 _sha3 _sha512 _socket _statistics
    _struct _typing _uuid array binascii fcntl grp math mmap resource select syslog termios
    unicodedata zlib
"""

_STDLIB_OMITTED = """
    __phello__ __pycache__ _pyrepl antigravity.py cgi.py cgitb.py curses dbm dist-packages
    distutils doctest.py ensurepip idlelib imaplib.py lib-dynload lib2to3 mailbox.py msilib
    multiprocessing nntplib.py pdb.py pydoc.py pydoc_data site-packages sqlite3 test this.py
    tkinter turtle.py turtledemo unittest venv webbrowser.py wsgiref xmlrpc
"""
_STDLIB_OMITTED_PREFIXES = ("config-", "_sysconfigdata", "__hello__")

_PROBE = """
import json, os, sys, sysconfig
print(json.dumps({
    "executable": os.path.realpath(sys.executable),
    "version": "%d.%d" % sys.version_info[:2],
    "stdlib": sysconfig.get_path("stdlib"),
    "extension_suffix": sysconfig.get_config_var("EXT_SUFFIX"),
}))
"""

_SELF_CHECK = """
import sys
sys.path.insert(0, sys.argv[1])
import asyncio, ctypes, fcntl, gzip, hashlib, json, pwd, resource, struct, termios, uuid, zlib
import alcove.guest.main
hashlib.sha256(b"").hexdigest()
"""

# Its module lies in the standard library's zip, which is open by then: no other file is looked for.
_SUDO_MODULE = "elevation_client"
_SUDO = f"""\
#!/bin/sh
case $0 in *sudoedit) set -- --edit "$@" ;; esac
exec {" ".join(AGENT_ARGV[:4])} -ISB -X utf8 \\
    -c 'import {_SUDO_MODULE} as sudo; raise SystemExit(sudo.main())' "$@"
"""

_LDD_LINE = re.compile(r"^\s*(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)$")
_LDD_MISSING = re.compile(r"^\s*(\S+) => not found$", re.MULTILINE)


class AgentBundleError(Exception):
    """The guest bundle cannot be made on this machine; the message says what to do."""


async def ensure_bundle(data_dir: Path, python: Path = SYSTEM_PYTHON) -> Path:
    """The bundle's directory for this machine's interpreter and this version of the guest.

    Made if it is not there yet; safe to repeat and to kill at any time.
    """
    contents = await _contents(python)
    bundle = data_dir / "agent" / await asyncio.to_thread(contents.key)
    if bundle.is_dir():
        return bundle
    bundle.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".new-", dir=bundle.parent))
    try:
        await _fill(work, contents, python)
        await _self_check(work)
        _publish(work, bundle)
    finally:
        await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)
    _log.info("agent bundle made: %s", bundle.name)
    return bundle


def remove_bundles(data_dir: Path, keep: set[str]) -> None:
    """Remove bundles whose key is not in `keep`, and what an interrupted build left."""
    root = data_dir / "agent"
    if not root.is_dir():
        return
    for path in root.iterdir():
        if path.name not in keep:
            shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Contents:
    """Where everything in a bundle comes from; names are relative to the bundle."""

    version: str
    binaries: tuple[tuple[str, Path], ...]
    stdlib: tuple[tuple[str, Path], ...]
    guest: tuple[tuple[str, Path], ...]

    def key(self) -> str:
        digest = hashlib.sha256(_FORMAT.encode() + _SUDO.encode() + _PACKER.read_bytes())
        for name, path in (*self.binaries, *self.stdlib, *self.guest):
            body = path.read_bytes()
            digest.update(f"{name}\0{len(body)}\0".encode() + body)
        return digest.hexdigest()[:20]


async def _contents(python: Path) -> _Contents:
    try:
        probe = json.loads((await run([str(python), "-I", "-c", _PROBE])).stdout)
    except (CommandError, OSError, ValueError) as error:
        raise AgentBundleError(
            f"{python} does not run; install the distribution's python3 package"
        ) from error
    stdlib = Path(probe["stdlib"])
    extensions = list(_extensions(stdlib / "lib-dynload", probe["extension_suffix"]))
    executable = Path(probe["executable"])
    libraries = await _libraries([executable, *extensions])
    dynload = f"lib/python{probe['version']}/lib-dynload"
    return _Contents(
        version=probe["version"],
        binaries=(
            ("bin/python3", executable),
            *((f"lib/{name}", path) for name, path in sorted(libraries.items())),
            *((f"{dynload}/{path.name}", path) for path in extensions),
        ),
        stdlib=(
            *_sources(stdlib, "", omit=_omitted_from_stdlib),
            (f"{_SUDO_MODULE}.py", _GUEST / f"{_SUDO_MODULE}.py"),
        ),
        guest=tuple(_guest_sources()),
    )


def _extensions(dynload: Path, suffix: str) -> Iterator[Path]:
    for path in sorted(dynload.glob(f"*{suffix}")):
        if path.name.removesuffix(suffix) in _EXTENSIONS.split():
            yield path


async def _libraries(binaries: Iterable[Path]) -> dict[str, Path]:
    """The loader (as "ld.so") and every shared library the binaries need, by name."""
    listing = (await run(["ldd", *map(str, binaries)], env={"LC_ALL": "C"})).stdout
    if missing := _LDD_MISSING.findall(listing):
        raise AgentBundleError(
            f"shared libraries of python3 are missing: {', '.join(sorted(set(missing)))};"
            " reinstall the distribution's python3 package"
        )
    found: dict[str, Path] = {}
    for line in listing.splitlines():
        if (match := _LDD_LINE.match(line)) is None:
            continue
        path = Path(match[1])
        found["ld.so" if path.name.startswith("ld-") else path.name] = path
    if "ld.so" not in found:
        raise AgentBundleError("ldd names no program loader for python3; is it a static build?")
    return found


def _omitted_from_stdlib(top_level_name: str) -> bool:
    return top_level_name in _STDLIB_OMITTED.split() or top_level_name.startswith(
        _STDLIB_OMITTED_PREFIXES
    )


def _guest_sources() -> Iterator[tuple[str, Path]]:
    yield "__main__.py", _GUEST / "__main__.py"
    for name in ("__init__.py", "_version.py", "concurrency.py"):
        yield f"alcove/{name}", _GUEST.parent / name
    yield from _sources(_GUEST, "alcove/guest/", omit=lambda name: name == f"{_SUDO_MODULE}.py")
    yield from _sources(_GUEST.parent / "wire", "alcove/wire/")
    spec = importlib.util.find_spec("h11")
    if spec is None or spec.origin is None:
        raise AgentBundleError("the Python package h11 is missing; install alcove[guest]")
    yield from _sources(Path(spec.origin).parent, "h11/", omit=lambda name: name == "tests")


def _sources(
    root: Path, prefix: str, omit: Callable[[str], bool] = lambda _: False
) -> Iterator[tuple[str, Path]]:
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if not omit(relative.parts[0]):
            yield f"{prefix}{relative}", path


async def _fill(work: Path, contents: _Contents, python: Path) -> None:
    def copy_binaries() -> None:
        for name, source in contents.binaries:
            target = work / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            target.chmod(0o755)
        sudo = work / "bin" / "sudo"
        sudo.write_text(_SUDO)
        sudo.chmod(0o755)

    await asyncio.to_thread(copy_binaries)
    stdlib = f"lib/python{contents.version.replace('.', '')}.zip"
    for name, sources in ((stdlib, contents.stdlib), ("guest.pyz", contents.guest)):
        listing = json.dumps([(inside, str(path)) for inside, path in sources])
        await run([str(python), "-I", str(_PACKER), str(work / name)], stdin=listing)


async def _self_check(bundle: Path) -> None:
    """Load the guest with nothing but the bundle's own files."""
    library = str(bundle / "lib")
    argv = [f"{library}/ld.so", "--library-path", library, str(bundle / "bin/python3")]
    check = ["-sSB", "-c", _SELF_CHECK, str(bundle / "guest.pyz")]
    try:
        await run([*argv, *check], env={"PYTHONHOME": str(bundle)})
    except CommandError as error:
        raise AgentBundleError("the guest bundle was made but does not run") from error


def _publish(work: Path, bundle: Path) -> None:
    # mkdtemp makes directories private; everybody inside a sandbox may read the bundle.
    work.chmod(0o755)
    try:
        os.rename(work, bundle)  # noqa: PTH104  Path.rename hides which of the two errors it was
    except OSError:
        # Somebody else made the same bundle meanwhile; equal keys are equal contents.
        if not bundle.is_dir():
            raise
