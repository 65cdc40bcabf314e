"""The guest bundle: reproducible, atomic, and enough by itself in any root file system."""

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from alcove.node import agent_bundle
from alcove.node.agent_bundle import AgentBundleError, ensure_bundle, remove_bundles
from alcove.node.drivers.driver import AGENT_ARGV, AGENT_ENV, AGENT_MOUNT
from alcove.node.run import Output, run

pytestmark = pytest.mark.skipif(
    not agent_bundle.SYSTEM_PYTHON.exists(), reason="needs the distribution's python3"
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root")

# What the agent cannot do without, and proof that it runs on its own loader and libraries.
PROGRAM = f"""
import sys
sys.path.insert(0, "{AGENT_MOUNT}/guest.pyz")
import alcove.guest.main, ctypes, hashlib, os, termios
assert hashlib.sha256(b"x").hexdigest().startswith("2d711642")
mapped = {{line.split(None, 5)[5] for line in open("/proc/self/maps") if "/" in line}}
assert all(path.strip().startswith("{AGENT_MOUNT}/") for path in mapped), mapped
print("loaded")
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def bundle(data_dir: Path) -> Path:
    return asyncio.run(ensure_bundle(data_dir))


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_it_is_made_once(data_dir: Path, bundle: Path) -> None:
    made_at = bundle.stat().st_mtime_ns
    assert asyncio.run(ensure_bundle(data_dir)) == bundle
    assert bundle.stat().st_mtime_ns == made_at


def test_the_same_machine_makes_the_same_bundle(bundle: Path, tmp_path: Path) -> None:
    again = asyncio.run(ensure_bundle(tmp_path))
    assert again.name == bundle.name
    assert contents(again) == contents(bundle)


def test_two_at_once_and_a_crashed_one_do_no_harm(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "agent" / ".new-crashed" / "lib").mkdir(parents=True)

    async def both() -> tuple[Path, Path]:
        async with asyncio.TaskGroup() as tasks:
            one = tasks.create_task(ensure_bundle(tmp_path))
            two = tasks.create_task(ensure_bundle(tmp_path))
        return one.result(), two.result()

    one, two = asyncio.run(both())
    assert one == two
    assert contents(one) == contents(bundle)
    remove_bundles(tmp_path, {one.name})
    assert [path.name for path in (tmp_path / "agent").iterdir()] == [one.name]


def test_only_bundles_to_keep_are_kept(tmp_path: Path) -> None:
    kept = asyncio.run(ensure_bundle(tmp_path))
    (tmp_path / "agent" / "0123456789abcdef0123").mkdir()
    remove_bundles(tmp_path, {kept.name})
    assert list((tmp_path / "agent").iterdir()) == [kept]


def test_no_source_and_no_needless_library_is_in_it(bundle: Path) -> None:
    names = contents(bundle).keys()
    assert not [name for name in names if name.endswith(".py")]
    assert not [name for name in names if "libcrypto" in name or "libsqlite" in name]
    assert {"bin/python3", "bin/sudo", "lib/ld.so", "lib/libc.so.6", "guest.pyz"} <= names


def test_a_missing_interpreter_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(AgentBundleError, match="install"):
        asyncio.run(ensure_bundle(tmp_path, Path("/nowhere/python3")))
    assert not (tmp_path / "agent").exists()


@needs_root
def test_it_runs_in_an_empty_root(bundle: Path, tmp_path: Path) -> None:
    assert in_root(tmp_path, bundle, PROGRAM).stdout == "loaded\n"


@needs_root
def test_it_runs_in_a_musl_root_without_python(bundle: Path, tmp_path: Path) -> None:
    loader = next(Path("/lib").glob("ld-musl-*.so.1"), None)
    busybox = shutil.which("busybox")
    if loader is None or busybox is None:
        pytest.skip("needs the packages musl and busybox-static: bin/packages test")
    (tmp_path / "lib").mkdir()
    (tmp_path / "bin").mkdir()
    shutil.copy(loader.resolve(), tmp_path / "lib" / loader.name)
    shutil.copy(busybox, tmp_path / "bin" / "sh")
    # The agent starts a program of the image and hears how it ended.
    program = PROGRAM + "print(os.spawnv(os.P_WAIT, '/bin/sh', ['sh', '-c', 'exit 7']))"
    assert in_root(tmp_path, bundle, program).stdout == "loaded\n7\n"


def in_root(root: Path, bundle: Path, program: str) -> Output:
    """Run a program as the agent is run, in a root of which it has nothing but its bundle."""
    mount = root / AGENT_MOUNT.lstrip("/")
    mount.mkdir(parents=True)
    (root / "proc").mkdir()
    script = (
        f"mount --bind -o ro {bundle} {mount} && mount -t proc proc {root}/proc"
        f' && exec chroot {root} "$@"'
    )
    agent = [*AGENT_ARGV[:-1], "-c", program]
    argv = ["unshare", "--mount", "--pid", "--fork", "sh", "-c", script, "sh", *agent]
    return asyncio.run(run(argv, env=AGENT_ENV))
