"""What the agent adds to the Pythons of an image: new numbers on SIGURG, and nothing else."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alcove.guest.machine import Machine
from alcove.guest.reseeding import HOOK, MARK


@pytest.fixture
def hooked(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "sitecustomize.py").write_text(HOOK)
    return os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONUNBUFFERED": "1"}


def test_every_python_is_taught_once(tmp_path: Path) -> None:
    library = tmp_path / "usr/lib/python3.11"
    other = tmp_path / "usr/local/lib/python3.12"
    for directory in (library, other, tmp_path / "usr/local/lib/python3.13", tmp_path / "etc"):
        directory.mkdir(parents=True)
    for directory in (library, other):
        (directory / "os.py").touch()
    (tmp_path / "etc/sitecustomize.py").write_text("import apport\n")
    (library / "sitecustomize.py").symlink_to("../../../etc/sitecustomize.py")
    for _ in range(2):
        Machine(str(tmp_path)).teach_python()
    text = (tmp_path / "etc/sitecustomize.py").read_text()
    assert text.startswith("import apport\n")
    assert text.count(MARK) == 1
    assert (library / "sitecustomize.py").is_symlink()
    assert (other / "sitecustomize.py").read_text() == HOOK
    assert not (tmp_path / "usr/local/lib/python3.13/sitecustomize.py").exists()


DRAWING = """
import random, sys, time
random.seed(1)
expected = [random.random() for _ in range(3)]
random.seed(1)
random.random()
print("ready")
sys.stdin.readline()
print(random.random() == expected[1])
began = time.monotonic()
time.sleep(0.3)
print(time.monotonic() - began >= 0.3)
"""


@pytest.mark.parametrize(("urged", "same"), [(True, "False"), (False, "True")])
def test_a_running_program_draws_new_numbers(
    hooked: dict[str, str], urged: bool, same: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DRAWING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=hooked,
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        if urged:
            program.send_signal(signal.SIGURG)
            time.sleep(0.1)
        program.stdin.write("\n")
        program.stdin.flush()
        assert program.stdout.readline() == f"{same}\n"
        if urged:
            program.send_signal(signal.SIGURG)
        assert program.stdout.readline() == "True\n"
        assert program.wait() == 0


DRAWING_WITH = {
    "numpy": "import numpy.random as module\nset_seed, draw = module.seed, module.rand",
    # The name and the functions are torch's; torch itself has a gigabyte.
    "torch": "import torch as module\nset_seed, draw = module.manual_seed, module.rand",
}
TORCH = """
import random
_generator = random.Random()
manual_seed = _generator.seed
rand = _generator.random
def seed():
    _generator.seed()
"""


@pytest.mark.parametrize("library", DRAWING_WITH)
def test_libraries_draw_new_numbers(hooked: dict[str, str], tmp_path: Path, library: str) -> None:
    (tmp_path / "torch.py").write_text(TORCH)
    code = (
        f"{DRAWING_WITH[library]}\n"
        "import os, signal\n"
        "def drawn(urged):\n"
        "    set_seed(1)\n"
        "    if urged:\n"
        "        os.kill(os.getpid(), signal.SIGURG)\n"
        "    return draw()\n"
        "print(len({drawn(False), drawn(False)}), len({drawn(True), drawn(True), drawn(False)}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=hooked, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1 3\n"


def test_a_program_that_has_its_own_use_for_the_signal_keeps_it(hooked: dict[str, str]) -> None:
    code = (
        "import os, signal\n"
        "signal.signal(signal.SIGURG, lambda *_: print('mine'))\n"
        "os.kill(os.getpid(), signal.SIGURG)\n"
        "import subprocess\n"
        "print(subprocess.run(['sh', '-c', 'kill -URG $$; echo alive']).returncode)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=hooked, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["mine", "alive", "0"]
