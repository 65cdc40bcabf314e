"""Processes that the agent keeps running (guest/keeping.py)."""

import os
import signal
import time
from collections.abc import Callable

from guest_agent import Agent

KEEP = {"alcove-keep-running": "true"}
PATIENCE_S = 30


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_ends_is_started_again_until_the_reboot(own_agent: Agent) -> None:
    starts = own_agent.root / "starts"
    script = f"echo $WHO $$ >> {starts}; exec sleep 1000"

    def lines() -> list[list[str]]:
        return [line.split() for line in starts.read_text().splitlines()] if starts.exists() else []

    kept = own_agent.start("/bin/sh", "-c", script, headers=KEEP)
    kept.next()
    kept.close()
    until(lambda: len(lines()) == 1)
    own_agent.init(envVars={"WHO": "clone"})
    os.kill(int(lines()[0][-1]), signal.SIGKILL)
    until(lambda: len(lines()) == 2)
    assert lines()[1][0] == "clone", "it sees what the sandbox is told since"
    (running,) = own_agent.unary("List", {}).json["processes"]
    assert running["pid"] == int(lines()[1][1])

    assert own_agent.request("POST", "/reboot").json["ended"] >= 1
    time.sleep(1.5)
    assert len(lines()) == 2
    assert own_agent.unary("List", {}).json == {"processes": []}


def test_what_is_refused_is_not_kept(own_agent: Agent) -> None:
    config = {"cmd": "/bin/true", "cwd": "/not/there"}
    assert own_agent.stream("Start", {"process": config}, **KEEP).rest().error is not None
    assert own_agent.unary("List", {}).json == {"processes": []}


def test_others_end_for_good(own_agent: Agent) -> None:
    starts = own_agent.root / "starts"
    assert own_agent.run(f"echo x >> {starts}").end is not None
    time.sleep(1.5)
    assert starts.read_text() == "x\n"
