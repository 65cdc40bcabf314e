"""Processes on a terminal, against a real agent (contract e2b 3.6)."""

import os

import pytest
from guest_agent import Agent, Stream, b64, basic

SIZE = {"size": {"cols": 90, "rows": 30}}


def start(agent: Agent, *argv: str, **more: object) -> Stream:
    return agent.start(*argv, pty=SIZE, **more)  # type: ignore[arg-type]


def type_in(agent: Agent, stream: Stream, text: bytes) -> int:
    message = {"process": {"pid": stream.result.pid}, "input": {"pty": b64(text)}}
    return agent.unary("SendInput", message).status


def test_a_terminal_is_one_and_has_the_size_asked_for(agent: Agent) -> None:
    ended = start(agent, "/bin/sh", "-c", "test -t 0 && test -t 1 && test -t 2 && stty size").rest()
    assert ended.pty == b"30 90\r\n"
    assert ended.end == {"exitCode": 0, "exited": True, "status": "exit status 0"}


def test_a_terminal_controls_its_session(agent: Agent) -> None:
    ended = start(
        agent, "/bin/sh", "-c", "echo through > /dev/tty; ps -o sid= -p $$; echo $$"
    ).rest()
    words = ended.pty.split()
    assert words[0] == b"through"
    assert words[1] == words[2]


def test_an_interactive_shell_takes_input_control_c_and_resizing(agent: Agent) -> None:
    shell = start(agent, "/bin/bash", "--norc", "-i", envs={"TERM": "dumb", "PS1": "$ "})
    shell.next()
    pid = {"process": {"pid": shell.result.pid}}
    type_in(agent, shell, b"sh -c 'echo in$((0+1))front; exec sleep 100'\n")
    shell.until_stdout(b"in1front")
    type_in(agent, shell, b"\x03")
    type_in(agent, shell, b"echo in$((1+1))terrupted\n")
    shell.until_stdout(b"in2terrupted")
    assert agent.unary("Update", pid | {"pty": {"size": {"cols": 120, "rows": 40}}}).status == 200
    type_in(agent, shell, b"stty size\n")
    shell.until_stdout(b"40 120")
    type_in(agent, shell, b"exit 5\n")
    ended = shell.rest()
    assert ended.end is not None
    assert ended.end["exitCode"] == 5


def test_all_output_of_a_terminal_arrives(agent: Agent) -> None:
    ended = start(agent, "/bin/sh", "-c", "seq 20000").rest()
    assert ended.pty.split() == [str(n).encode() for n in range(1, 20001)]


def test_the_wrong_kind_of_input_is_refused(agent: Agent) -> None:
    shell = start(agent, "/bin/cat")
    shell.next()
    pid = {"process": {"pid": shell.result.pid}}
    wrong = agent.unary("SendInput", pid | {"input": {"stdin": b64(b"x")}})
    assert (wrong.status, wrong.json["code"]) == (500, "internal")
    assert agent.unary("CloseStdin", pid).json["code"] == "unknown"
    type_in(agent, shell, b"\x04")
    assert shell.rest().end is not None


def test_a_process_without_terminal_cannot_be_resized(agent: Agent) -> None:
    stream = agent.start("/bin/cat", stdin=True)
    stream.next()
    pid = {"process": {"pid": stream.result.pid}}
    refused = agent.unary("Update", pid | {"pty": SIZE})
    assert (refused.status, refused.json["code"]) == (500, "internal")
    agent.unary("CloseStdin", pid)
    stream.rest()


@pytest.mark.skipif(os.geteuid() != 0, reason="runs commands as other users")
def test_a_terminal_belongs_to_its_user(agent: Agent) -> None:
    ended = start(
        agent, "/bin/sh", "-c", "stat -c %U $(tty); echo ok > $(tty)", headers=basic("nobody")
    ).rest()
    assert ended.pty.split() == [b"nobody", b"ok"]
