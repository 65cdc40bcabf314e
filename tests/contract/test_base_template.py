"""What users find in the default template: programs, package managers, disk, and sudo."""

from collections.abc import Callable

import pytest
from e2b import CommandExitException, PtySize, Sandbox

PROGRAMS = (
    "bash cc curl df file find gcc gh git grep gzip ip jq kill less make mount nano nc node npm npx"
    " openssl perl pip pip3 ps python python3 sed ss ssh stty sudo tar top tput unzip vi wget xz"
    " yarn zip"
)
PROMPT = b"$ "
BECOME_BYSTANDER = "useradd --create-home bystander"


def exit_code(sandbox: Sandbox, command: str, **options: str) -> tuple[int, str]:
    """Exit code and stderr of a command that fails."""
    with pytest.raises(CommandExitException) as caught:
        sandbox.commands.run(command, **options)
    return caught.value.exit_code, caught.value.stderr


class Terminal:
    """A shell in a terminal, and what it has printed so far."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._pty = sandbox.pty
        self._handle = sandbox.pty.create(PtySize(rows=24, cols=80), envs={"PS1": "$ "})
        self._events = iter(self._handle)
        self.output = b""

    def type(self, text: bytes) -> None:
        self._pty.send_stdin(self._handle.pid, text)

    def until(self, mark: bytes) -> bytes:
        """What came since the last call, up to the mark."""
        while mark not in self.output:
            _, _, data = next(self._events)
            self.output += data or b""
        before, _, self.output = self.output.partition(mark)
        return before

    def interrupt(self, prompt: bytes = PROMPT) -> None:
        """^C, and wait: what is typed before the prompt may still be the ended command's."""
        self.type(b"\x03")
        self.until(prompt)

    def close(self) -> None:
        self._pty.kill(self._handle.pid)


def test_programs_are_there(shared: Sandbox) -> None:
    missing = shared.commands.run(
        f"for program in {PROGRAMS}; do command -v $program >/dev/null || echo $program; done"
    )
    assert missing.stdout == ""


def test_compiler_and_interpreters_work(shared: Sandbox) -> None:
    source = '#include <stdio.h>\\nint main(){puts("built");}'
    assert shared.commands.run(f"printf '{source}' | gcc -xc - && ./a.out").stdout == "built\n"
    assert shared.commands.run("node -p 6*7; python -c 'print(6*7)'").stdout == "42\n42\n"


def test_tmp_is_disk_and_open_to_all(shared: Sandbox) -> None:
    assert shared.commands.run("stat -c %d /tmp /").stdout.split()[0] == (
        shared.commands.run("stat -c %d /").stdout.strip()
    )
    modes = shared.commands.run("stat -c '%a %U' /tmp /tmp/.X11-unix").stdout
    assert modes == "1777 root\n1777 root\n"
    assert " /tmp " not in shared.commands.run("cat /proc/mounts").stdout


def test_a_command_inherits_no_descriptor(shared: Sandbox) -> None:
    # ls itself has the directory open.
    for sudo in ("", "sudo "):
        listed = shared.commands.run(f"{sudo}ls /proc/self/fd").stdout.split()
        assert listed == ["0", "1", "2", "3"]


def test_packages_of_the_distribution(make: Callable[..., Sandbox]) -> None:
    sandbox = make(timeout=300)
    sandbox.commands.run("sudo apt-get update && sudo apt-get install -y cowsay", timeout=180)
    assert "moo" in sandbox.commands.run("/usr/games/cowsay moo").stdout
    # The package sudo itself is replaced without a quarrel, and sudo goes on.
    sandbox.commands.run("sudo apt-get install -y --reinstall sudo", timeout=120)
    assert sandbox.commands.run("sudo whoami").stdout == "root\n"


def test_packages_of_python_and_node(make: Callable[..., Sandbox]) -> None:
    sandbox = make(timeout=300)
    sandbox.commands.run("pip install six", timeout=120)
    assert sandbox.commands.run("python -c 'import six; print(six.PY3)'").stdout == "True\n"
    sandbox.commands.run("npm install -g is-number", timeout=120)
    assert "is-number" in sandbox.commands.run("npm ls -g").stdout


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("sudo whoami", "root\n"),
        ("sudo -n -- id -u", "0\n"),
        ("sudo -u user whoami", "user\n"),
        ("sudo -u '#1000' whoami", "user\n"),
        ("sudo sudo whoami", "root\n"),
        ("/usr/bin/sudo whoami", "root\n"),
        ("MARK=1 sudo sh -c 'echo $HOME $USER $LOGNAME $SUDO_USER $SUDO_UID $MARK'",
         "/root root root user 1000\n"),
        ("MARK=1 sudo -E sh -c 'echo $MARK'", "1\n"),
        ("MARK=1 sudo --preserve-env=OTHER,MARK sh -c 'echo $MARK'", "1\n"),
        ("sudo A=1 B='x y' sh -c 'echo $A $B'", "1 x y\n"),
        ("sudo -i pwd", "/root\n"),
        ("sudo -i echo 'a  b' '$HOME'", "a  b /root\n"),
        ("sudo -s echo \"it's\"", "it's\n"),
        ("sudo -iu user pwd", "/home/user\n"),
        ("cd /tmp && sudo pwd", "/tmp\n"),
        ("sudo -D /var pwd", "/var\n"),
        ("printf 'a\\nb' | sudo cat | wc -c", "3\n"),
        ("sudo sh -c 'echo no >&2' 2>/dev/null", ""),
        ("umask 077; sudo sh -c umask", "0077\n"),
        ("sudo -v && sudo -k && sudo -K && echo done", "done\n"),
        ("sudo -l whoami", "/usr/bin/whoami\n"),
        ("sudo printf '%s|' '' 'ä' '-x' a=b", "|ä|-x|a=b|"),
        ("LC_ALL= LC_CTYPE= LANG= sudo env | grep -c ^LC_CTYPE=C || true", "0\n"),
    ],
)  # fmt: skip
def test_sudo(shared: Sandbox, command: str, expected: str) -> None:
    assert shared.commands.run(command).stdout == expected


def test_sudo_says_how_the_command_ended(shared: Sandbox) -> None:
    assert exit_code(shared, "sudo sh -c 'exit 7'") == (7, "")
    assert exit_code(shared, "sudo sh -c 'kill -TERM $$'; test $? = 143 && exit 9")[0] == 9
    assert exit_code(shared, "sudo no-such-program") == (
        1, "sudo: no-such-program: command not found\n",
    )  # fmt: skip
    assert exit_code(shared, "sudo ./nothing") == (1, "sudo: ./nothing: command not found\n")
    assert exit_code(shared, "sudo -u nobody-here id") == (1, "sudo: unknown user nobody-here\n")
    assert "usage: sudo" in exit_code(shared, "sudo")[1]
    assert "not supported" in exit_code(shared, "sudoedit /etc/hosts")[1]


def test_sudo_passes_signals_on(shared: Sandbox) -> None:
    script = "trap 'echo got; exit 5' TERM; echo ready; while :; do sleep 0.1; done"
    command = f'sudo sh -c "{script}" & read -t 0 _; sleep 1; kill $!; wait $!; echo $?'
    assert shared.commands.run(command).stdout == "ready\ngot\n5\n"


def test_sudo_that_is_killed_takes_its_command_along(shared: Sandbox) -> None:
    handle = shared.commands.run("exec sudo sh -c 'echo $$; exec sleep 400'", background=True)
    pid = next(out for out, _, _ in handle if out).strip()
    assert shared.commands.kill(handle.pid)
    gone = f"for i in $(seq 60); do kill -0 {pid} 2>/dev/null || exit 0; sleep 0.1; done; exit 1"
    shared.commands.run(gone, user="root")


def test_many_at_once(shared: Sandbox) -> None:
    command = "for i in $(seq 40); do sudo sh -c 'echo $(($0*2))' $i & done; wait"
    numbers = sorted(int(line) for line in shared.commands.run(command).stdout.split())
    assert numbers == [2 * i for i in range(1, 41)]


def test_sudo_in_a_terminal(shared: Sandbox) -> None:
    terminal = Terminal(shared)
    try:
        terminal.type(b"sudo bash --norc -i\n")
        terminal.until(b"# ")
        terminal.type(b"PS1='root> '; tty -s && echo has-$((1+1)); stty size\n")
        terminal.until(b"has-2")
        assert b"24 80" in terminal.until(b"root> ")
        terminal.type(b"sh -c 'echo up-$((1+1)); exec sleep 100'\n")
        terminal.until(b"up-2")
        terminal.interrupt(prompt=b"root> ")
        terminal.type(b"echo after-$((40+2))\n")
        terminal.until(b"after-42")
        terminal.type(b"echo $(id -u)-uid; exit 6\n")
        terminal.until(b"0-uid")
        terminal.until(PROMPT)  # what is typed before would still be the ended shell's
        terminal.type(b"echo code-$?\n")
        terminal.until(b"code-6")
        terminal.until(PROMPT)
        # What it did to the caller's terminal is undone.
        terminal.type(b"stty -a | grep -o ' echo ' | tr -d ' ' | tr o 0\n")
        terminal.until(b"ech0")
    finally:
        terminal.close()


def test_interrupt_in_a_terminal_ends_the_command(shared: Sandbox) -> None:
    terminal = Terminal(shared)
    try:
        terminal.type(b"sudo sh -c 'echo up-$((1+1)); exec sleep 300'\n")
        terminal.until(b"up-2")
        terminal.interrupt()
        terminal.type(b"echo left-$?-$((1+1))\n")
        terminal.until(b"left-130-2")
        # In a pipeline the keyboard is shared with others, and signals are passed on.
        terminal.type(b"sudo sh -c 'echo up-$((1+2)) >&2; exec sleep 300' | cat\n")
        terminal.until(b"up-3")
        terminal.interrupt()
        terminal.type(b"echo again-$((1+1))\n")
        terminal.until(b"again-2")
    finally:
        terminal.close()


def test_a_stopped_pipeline_goes_on(shared: Sandbox) -> None:
    terminal = Terminal(shared)
    try:
        terminal.type(b"sudo sh -c 'echo up-$((1+1)); while read x; do echo got-$x; done' | cat\n")
        terminal.until(b"up-2")
        terminal.type(b"\x1a")
        terminal.until(b"Stopped")
        terminal.until(PROMPT)
        terminal.type(b"fg\n")
        terminal.until(b"| cat")
        terminal.type(b"word\n")
        terminal.until(b"got-")  # gVisor leaves the ^Z itself in the input
        terminal.until(b"word")
        terminal.interrupt()
        terminal.type(b"echo end-$((1+1))\n")
        terminal.until(b"end-2")
    finally:
        terminal.close()


def test_users_outside_the_group_are_refused(make: Callable[..., Sandbox]) -> None:
    sandbox = make()
    sandbox.commands.run(f"sudo {BECOME_BYSTANDER}")
    for command in ("sudo id", "unshare --user --map-root-user sudo id"):
        code, stderr = exit_code(sandbox, command, user="bystander")
        assert code == 1
        assert "may not become another user" in stderr or "user id 65534" in stderr
    private = "mkdir -m 700 private && cd private && sudo -u bystander pwd"
    assert sandbox.commands.run(private).stdout == "/home/user/private\n"
    sandbox.commands.run("sudo usermod -aG sudo bystander")
    assert sandbox.commands.run("sudo whoami", user="bystander").stdout == "root\n"
