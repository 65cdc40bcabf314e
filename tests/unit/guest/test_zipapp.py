"""The agent as it ships: one archive, standard library and h11 only."""

import os
import shutil
import subprocess
import sys
import zipapp
from pathlib import Path

import h11
from guest_agent import Agent

import alcove


def test_the_archive_serves(tmp_path: Path) -> None:
    package = Path(alcove.__file__).parent
    tree = tmp_path / "tree"
    for part in ("guest", "wire"):
        shutil.copytree(package / part, tree / "alcove" / part)
    for name in ("__init__.py", "_version.py", "concurrency.py"):
        shutil.copy(package / name, tree / "alcove")
    shutil.copytree(Path(h11.__file__).parent, tree / "h11")
    shutil.copy(package / "guest/__main__.py", tree)
    archive = tmp_path / "guest.pyz"
    zipapp.create_archive(tree, archive)
    process = subprocess.Popen(
        [sys.executable, "-sSE", archive],  # no site: nothing but the archive is importable
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"ALCOVE_GUEST_HOST": "127.0.0.1", "ALCOVE_GUEST_PORT": "0"},
    )
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline().rpartition(":")[2])
        agent = Agent(process, port, tmp_path)
        assert agent.run("echo packed").stdout == b"packed\n"
        assert agent.request("GET", "/health").status == 204
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
