"""POST /memory/relieve against a real agent."""

import json

import pytest
from guest_agent import Agent, Answer

HOG = "import sys; hog = b'x' * 80_000_000; print('full', flush=True); input()"


def test_the_largest_process_is_ended_and_its_command_told(agent: Agent) -> None:
    small = agent.start("/bin/cat", stdin=True)
    small.next()
    large = agent.start("/bin/sh", "-c", f'python3 -c "{HOG}"; echo shell goes on', stdin=True)
    large.until_stdout(b"full")
    answer = agent.request("POST", "/memory/relieve").json
    assert answer["cmd"].startswith("python")
    assert answer["rssBytes"] > 80_000_000
    ended = large.rest()
    line = (
        f"alcove: process {answer['pid']} ({answer['cmd']}) was ended: "
        "the sandbox is out of memory\n"
    )
    assert line.encode() in ended.stderr
    assert ended.stdout.endswith(b"shell goes on\n")
    agent.unary("CloseStdin", {"process": {"pid": small.result.pid}})
    assert small.rest().end == {"exitCode": 0, "exited": True, "status": "exit status 0"}


def test_a_command_that_is_ended_itself_says_so(agent: Agent) -> None:
    stream = agent.start("python3", "-c", HOG, stdin=True)
    stream.until_stdout(b"full")
    assert agent.request("POST", "/memory/relieve").json["pid"] == stream.result.pid
    ended = stream.rest()
    assert b"out of memory" in ended.stderr
    assert ended.end is not None
    assert ended.end["status"] == "signal: killed"


def relieve(agent: Agent, used_bytes: object) -> Answer:
    return agent.request("POST", "/memory/relieve", json.dumps({"usedBytes": used_bytes}).encode())


def test_an_innocent_small_process_is_not_ended(own_agent: Agent) -> None:
    small = own_agent.start("/bin/cat", stdin=True)
    small.next()
    assert relieve(own_agent, 500_000_000).json == {}
    own_agent.unary("CloseStdin", {"process": {"pid": small.result.pid}})
    assert small.rest().end == {"exitCode": 0, "exited": True, "status": "exit status 0"}


def test_small_processes_that_are_much_together_are_ended(own_agent: Agent) -> None:
    sleepers = [own_agent.start("/bin/cat", stdin=True) for _ in range(20)]
    for sleeper in sleepers:
        sleeper.next()
    one_bytes = relieve(own_agent, 0).json["rssBytes"]
    # None of those left has an eighth of this, but all of them have more than a quarter.
    assert relieve(own_agent, one_bytes * 15).json["pid"] in {s.result.pid for s in sleepers}


@pytest.mark.parametrize("used_bytes", [-1, "much", None, 1.5])
def test_nonsense_ends_nothing(agent: Agent, used_bytes: object) -> None:
    assert relieve(agent, used_bytes).status == 400


def test_without_processes_nothing_is_ended(own_agent: Agent) -> None:
    assert own_agent.request("POST", "/memory/relieve").json == {}
    assert own_agent.request("GET", "/health").status == 204
