"""The agent's sudo, natively: a real agent, the real client, real users."""

import ctypes
import os
import pty
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from guest_agent import Agent, running_agent

from alcove.guest import elevation, elevation_client, elevation_rules
from alcove.guest.elevation_rules import Program, Request
from alcove.guest.environment import Environment
from alcove.guest.machine import Machine
from alcove.guest.users import User

PYTHON = "/usr/bin/python3"
ALLOWED, BYSTANDER = "daemon", "nobody"
TIMEOUT_S = 30
_PIDFD_GETFD = 438
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="runs commands as other users")


@dataclass
class Sudo:
    """The client as a program; its module is copied to where other users may read it."""

    agent: Agent
    directory: Path

    @property
    def socket(self) -> str:
        return f"{self.agent.root}{elevation.SOCKET}"

    def argv(self, *arguments: str) -> list[str]:
        start = (
            f"import sys; sys.path.insert(0, {str(self.directory)!r});"
            f" import elevation_client as c; c.SOCKET = {self.socket!r}; raise SystemExit(c.main())"
        )
        return [PYTHON, "-ISB", "-X", "utf8", "-c", start, *arguments]

    def run(
        self, *arguments: str, user: str = ALLOWED, **options: object
    ) -> "subprocess.CompletedProcess[str]":
        given = {"cwd": "/", "stdin": subprocess.DEVNULL, "timeout": TIMEOUT_S, **options}
        return subprocess.run(  # type: ignore[call-overload, no-any-return]
            self.argv(*arguments), user=user, text=True, capture_output=True, **given
        )

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.argv(*arguments), user=ALLOWED, text=True, stdout=subprocess.PIPE, cwd="/"
        )


@pytest.fixture(scope="module")
def sudo() -> Iterator[Sudo]:
    directory = Path(tempfile.mkdtemp(prefix="alcove-sudo-"))  # pytest's own are private
    directory.chmod(0o755)
    (directory / "usr/bin").mkdir(parents=True)
    client = Path(elevation_client.__file__)
    shutil.copy(client, directory / client.name)
    try:
        with running_agent(directory) as agent:
            agent.init(defaultUser=ALLOWED)
            yield Sudo(agent, directory)
    finally:
        shutil.rmtree(directory)


def open_descriptors(agent: Agent) -> int:
    return len(list(Path(f"/proc/{agent.process.pid}/fd").iterdir()))


@needs_root
def test_the_default_user_becomes_root(sudo: Sudo) -> None:
    done = sudo.run("sh", "-c", "id -un; echo $SUDO_USER $HOME; pwd; exit 3")
    assert (done.returncode, done.stdout) == (3, f"root\n{ALLOWED} /root\n/\n")


@needs_root
def test_others_are_refused_and_root_is_not(sudo: Sudo) -> None:
    done = sudo.run("id", user=BYSTANDER)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{BYSTANDER} may not become another user" in done.stderr
    assert sudo.run("-u", BYSTANDER, "id", "-un", user="root").stdout == f"{BYSTANDER}\n"


@needs_root
def test_the_current_directory_need_not_be_open_to_the_target(sudo: Sudo, tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    done = sudo.run("-u", BYSTANDER, "pwd", user="root", cwd=private)
    assert done.stdout == f"{private}\n", done.stderr


@needs_root
def test_a_signal_ends_sudo_as_it_ended_the_command(sudo: Sudo) -> None:
    assert sudo.run("sh", "-c", "kill -USR1 $$").returncode == -signal.SIGUSR1
    assert sudo.run("sh", "-c", "kill -KILL $$").returncode == -signal.SIGKILL


@needs_root
def test_signals_are_passed_on(sudo: Sudo) -> None:
    running = sudo.start("sh", "-c", "trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done")
    with running:
        assert running.stdout is not None
        assert running.stdout.readline() == "up\n"
        running.terminate()
        assert running.wait(TIMEOUT_S) == 5


@needs_root
@pytest.mark.parametrize("trap", ["", "trap '' HUP; "])
def test_a_killed_client_takes_its_command_along(sudo: Sudo, trap: str) -> None:
    running = sudo.start("sh", "-c", f"{trap}echo $$; while :; do sleep 0.05; done")
    with running:
        assert running.stdout is not None
        handle = os.pidfd_open(int(running.stdout.readline()))
        running.kill()
        # The pipe ends with the last of them.
        assert running.stdout.read() == ""
    os.close(handle)


@needs_root
def test_in_the_background_the_command_outlives_sudo(sudo: Sudo, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with sudo.start("-b", "sh", "-c", f"exec >{fifo}; echo late") as running:
        assert running.wait(TIMEOUT_S) == 0
        assert fifo.read_text() == "late\n"


@needs_root
def test_a_terminal_of_its_own(sudo: Sudo) -> None:
    pid, master = pty.fork()
    if pid == 0:
        os.setgid(1)
        os.setuid(1)
        os.execv(PYTHON, sudo.argv("sh", "-c", "tty; echo $((1+1))-up; exec sleep 100"))
    printed = b""
    while b"2-up" not in printed:
        printed += os.read(master, 1024)
    assert b"/dev/pts/" in printed
    os.write(master, b"\x03")
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGINT
    os.close(master)


@needs_root
def test_many_at_once(sudo: Sudo) -> None:
    running = [sudo.start("sh", "-c", f"echo {number}") for number in range(30)]
    assert [one.communicate(timeout=TIMEOUT_S)[0] for one in running] == [
        f"{number}\n" for number in range(30)
    ]


@pytest.mark.parametrize(
    ("message", "descriptors", "answer"),
    [
        (b"\0\0\0\x03abc", [], b"that is no request"),
        (b"\0\0\0\x03abc", [0, 1], b"that is no request"),
        (b"\0\0\0\x03abc", [0] * 20, b"that is no request"),
        (b"\0\0\0\x03abc", [0, 1, 2, 0], b"malformed"),
        (b"\xff\xff\xff\xff", [0, 1, 2, 0], b"too long"),
        (b"\0\0\0\x08a=b\0\x00999", [0, 1, 2, 0], b"lacks"),
        (b"\0\0\0\x06a=b\0\x000", [0, 1, 2, 0], b"no command"),
        (b"\0\0\0\x0fterminal=\0\x001\0id", [0, 1, 2, 0], b"brings none"),
        (b"\0\0\0\x0fterminal=\0\x001\0id", [0, 1, 2, 0, 0], b"cannot be served"),
        (b"\0\0\0\x0cumask=x\0\x001\0id", [0, 1, 2, 0], b"cannot be served"),
    ],
)
def test_nonsense_is_refused_and_leaves_nothing(
    sudo: Sudo, message: bytes, descriptors: list[int], answer: bytes
) -> None:
    before = open_descriptors(sudo.agent)
    with socket.socket(socket.AF_UNIX) as connection, open("/", opener=_directory) as null:
        connection.settimeout(TIMEOUT_S)
        connection.connect(sudo.socket)
        passed = [null.fileno() for _ in descriptors]
        if passed:
            socket.send_fds(connection, [message], passed)
        else:
            connection.sendall(message)
        said = connection.recv(4096)
        assert said.startswith(b"R")
        assert answer in said
        assert connection.recv(1) == b""
    assert open_descriptors(sudo.agent) == before


@needs_root
def test_what_a_privileged_program_writes_is_no_request(sudo: Sudo) -> None:
    """A connection given to it as its output must not carry its rights."""
    asked = b"\0\x001\0id"
    connect = (
        "import socket, subprocess, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        "sys.stdout.write('up\\n'); sys.stdout.flush(); sys.stdin.read();"
        "socket.send_fds(s, [bytes.fromhex(sys.argv[2])], [0, 1, 2, 0]); print(s.recv(999))"
    )
    message = len(asked).to_bytes(4, "big") + asked
    argv = [PYTHON, "-c", connect, sudo.socket, message.hex()]
    with subprocess.Popen(
        argv, user=BYSTANDER, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "up\n"
        (shared,) = _sockets_of(other.pid)
        os.write(shared, message[:1])  # this process is root
        os.close(shared)
        answer, _ = other.communicate(timeout=TIMEOUT_S)
    assert "that is no request" in answer or answer == ""


def _sockets_of(pid: int) -> list[int]:
    """Duplicates of another process's sockets."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.pidfd_open(pid)
    numbers = [
        int(entry.name)
        for entry in Path(f"/proc/{pid}/fd").iterdir()
        if str(entry.readlink()).startswith("socket:")
    ]
    copies = [libc.syscall(_PIDFD_GETFD, handle, number, 0) for number in numbers]
    os.close(handle)
    return copies


def _directory(path: str, flags: int) -> int:
    return os.open(os.devnull, os.O_RDONLY)


@needs_root
def test_silent_connections_only_delay_others(sudo: Sudo) -> None:
    silent = [socket.socket(socket.AF_UNIX) for _ in range(20)]
    for connection in silent:
        connection.connect(sudo.socket)
    assert sudo.run("id", "-un").stdout == "root\n"
    for connection in silent:
        connection.close()


def test_both_sides_mean_the_same_socket() -> None:
    assert elevation_client.SOCKET == elevation.SOCKET


@pytest.mark.parametrize(
    ("arguments", "options", "command"),
    [
        ("id -u", {}, "id -u"),
        ("-nE id -n", {"non-interactive": "", "preserve-env": ""}, "id -n"),
        ("-iu post", {"login": "", "user": "post"}, ""),
        ("-upost id", {"user": "post"}, "id"),
        ("--user=post id", {"user": "post"}, "id"),
        ("--user post A=1 -n id B=2", {"user": "post", " A": "1", "non-interactive": ""}, "id B=2"),
        ("-- A=1 id", {}, "A=1 id"),
        ("-- -x", {}, "-x"),
        ("/a=b", {}, "/a=b"),
        ("--preserve-env=A --preserve-env=B id", {"preserve-env": "A,B"}, "id"),
        ("--preserve-env=A -E id", {"preserve-env": ""}, "id"),
        ("-p prompt -S -k id", {"prompt": "prompt", "stdin": "", "reset-timestamp": ""}, "id"),
    ],
)
def test_options(arguments: str, options: dict[str, str], command: str) -> None:
    assert elevation_client.parse(arguments.split()) == (options, command.split())


@pytest.mark.parametrize("wrong", ["-x id", "--nope id", "-u", "-g group id", "-e f", "--login=x"])
def test_unknown_and_unsupported_options_are_refused(wrong: str) -> None:
    with pytest.raises(SystemExit, match="sudo: "):
        elevation_client.parse(wrong.split())


CALLER = User("ann", 1000, 1000, "/home/ann", "/bin/zsh", (1000,))
ROOT = User("root", 0, 0, "/root", "/bin/bash", (0,))


def environment_of(options: dict[str, str], given: dict[str, str]) -> dict[str, str]:
    request = Request(options, {"SET": "1"}, ["id"], given)
    program = Program("id", ["id"])
    return elevation_rules.variables(request, CALLER, ROOT, Environment(), program)


def test_the_environment_is_reset_but_for_what_programs_need() -> None:
    given = {"SECRET": "1", "LD_PRELOAD": "x", "LC_ALL": "C", "SSL_CERT_FILE": "/ca", "HOME": "/h"}
    env = environment_of({}, given)
    assert not {"SECRET", "LD_PRELOAD"} & env.keys()
    assert (env["HOME"], env["SHELL"], env["LC_ALL"], env["SSL_CERT_FILE"], env["SET"]) == (
        "/root", "/bin/bash", "C", "/ca", "1",
    )  # fmt: skip
    assert (env["SUDO_USER"], env["SUDO_UID"], env["TERM"]) == ("ann", "1000", "unknown")


def test_the_environment_is_kept_on_request() -> None:
    given = {"SECRET": "1", "OTHER": "2", "HOME": "/h", "PATH": "/mine", "USER": "ann"}
    kept = environment_of({"preserve-env": ""}, given)
    assert (kept["SECRET"], kept["HOME"], kept["USER"]) == ("1", "/h", "root")
    assert kept["PATH"] == Environment().path
    assert environment_of({"preserve-env": "", "set-home": ""}, given)["HOME"] == "/root"
    some = environment_of({"preserve-env": "OTHER"}, given)
    assert some["OTHER"] == "2"
    assert "SECRET" not in some


def test_shells_get_the_words_as_they_were() -> None:
    request = Request({"login": ""}, {}, ["echo", "a b", "", "$X", "it's\n"], {})
    program = elevation_rules.program(request, CALLER, ROOT)
    assert program == Program("/bin/bash", ["-bash", "-c", "echo a\\ b '' $X it\\'s'\n'"])
    own_shell = elevation_rules.program(Request({"shell": ""}, {}, [], {}), CALLER, ROOT)
    assert own_shell == Program("/bin/zsh", ["/bin/zsh"])


def test_the_image_sudo_gives_way_once(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/sudo").write_text("the distribution's")
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/diversions").write_text("/a\n/b\npackage\n")
    for _ in range(2):
        assert Machine(str(tmp_path)).replace_sudo()
    assert str((tmp_path / "usr/bin/sudo").readlink()) == "/.alcove/bin/sudo"
    assert (tmp_path / "usr/bin/sudo.distrib").read_text() == "the distribution's"
    assert (tmp_path / "var/lib/dpkg/diversions").read_text() == (
        "/a\n/b\npackage\n/usr/bin/sudo\n/usr/bin/sudo.distrib\n:\n"
    )


def test_an_image_without_programs_is_left_alone(tmp_path: Path) -> None:
    assert not Machine(str(tmp_path)).replace_sudo()
    assert list(tmp_path.iterdir()) == []
