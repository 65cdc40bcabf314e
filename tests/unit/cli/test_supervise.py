"""The supervisor with small stand-in services: starts, restarts, ends, leaves no second copy."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alcove.cli.installation import Installation, Options
from alcove.cli.processes import ProcessId, end, identify, is_alive
from alcove.cli.supervise import end_leftovers, read_state, rotate, running_supervisor

SERVICE = """
import os, signal, sys, time
print("started", os.environ["ALCOVE_CONTROL_PORT"], flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
while True:
    time.sleep(1)
"""
PROGRAM = """
import asyncio, sys
from pathlib import Path
from alcove.cli.installation import load
from alcove.cli.supervise import Supervisor
asyncio.run(Supervisor(load(Path(sys.argv[1])), {"node": "stand_in", "edge": "stand_in"}).run())
"""


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    made = Installation(tmp_path / "data", Options(api_port=12345))
    made.save()
    return made


@pytest.fixture
def supervisor(installation: Installation, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    (tmp_path / "stand_in.py").write_text(SERVICE)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(installation.data_dir)],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.DEVNULL,
    )
    until(lambda: len(pids(installation)) == 2)
    yield process
    process.kill()
    process.wait()
    end_leftovers(installation)


def pids(installation: Installation) -> dict[str, int]:
    children = read_state(installation).get("children", {})
    return {name: c["pid"] for name, c in children.items() if identify(c.get("pid", 0))}


def test_services_get_their_settings_and_logs(
    installation: Installation, supervisor: subprocess.Popen[bytes]
) -> None:
    until(lambda: "started 12345" in (installation.logs / "node.log").read_text())
    assert running_supervisor(installation) == identify(supervisor.pid)


def test_dead_service_is_started_again(
    installation: Installation, supervisor: subprocess.Popen[bytes]
) -> None:
    first = pids(installation)
    os.kill(first["node"], signal.SIGKILL)
    until(lambda: pids(installation).get("node", first["node"]) != first["node"])
    child = read_state(installation)["children"]["node"]
    assert (child["restarts"], child["last_exit"]) == (1, -signal.SIGKILL)
    assert pids(installation)["edge"] == first["edge"]


def test_terminate_ends_everything(
    installation: Installation, supervisor: subprocess.Popen[bytes]
) -> None:
    children = [identify(pid) for pid in pids(installation).values()]
    supervisor.terminate()
    assert supervisor.wait(timeout=10) == 0
    assert not any(child and is_alive(child) for child in children)
    assert running_supervisor(installation) is None


def test_killed_supervisor_takes_its_services_along(
    installation: Installation, supervisor: subprocess.Popen[bytes]
) -> None:
    children = [child for pid in pids(installation).values() if (child := identify(pid))]
    assert len(children) == 2
    supervisor.kill()
    supervisor.wait()
    until(lambda: not any(is_alive(child) for child in children))


def test_a_reused_pid_is_somebody_else() -> None:
    me = identify(os.getpid())
    assert me is not None
    assert is_alive(me)
    stranger = ProcessId(me.pid, me.started_ticks + 1)
    assert not is_alive(stranger)
    assert end(stranger, 0.1) is True  # and this process still runs


def test_log_is_emptied_past_its_limit_and_its_writer_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"old\n" * 100)
        rotate(log, limit_bytes=10)
        writer.write(b"new\n")
    assert log.read_bytes() == b"new\n"
    assert log.with_suffix(".log.1").read_bytes() == b"old\n" * 100
