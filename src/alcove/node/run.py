"""The one door to host commands: argv lists in, output out, errors that paste into a shell."""

import asyncio
import shlex
import subprocess
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_WORDS_MAX_BYTES = 64 * 1024


class CommandError(Exception):
    """A host command failed: its command line, its exit code and its last words."""

    def __init__(self, argv: list[str], exit_code: int, output: str) -> None:
        super().__init__(f"{shlex.join(argv)}: exit code {exit_code}: {output.strip()[-2000:]}")
        self.argv = argv
        self.exit_code = exit_code
        self.output = output


@dataclass(frozen=True, slots=True)
class Output:
    stdout: str
    stderr: str
    exit_code: int


async def run(
    argv: list[str],
    *,
    stdin: str = "",
    timeout_s: float = 60.0,
    check: bool = True,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> Output:
    """Run a command to its end.

    Raises CommandError on a non-zero exit (unless `check` is false) and on the time limit, after
    which the command is killed.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        cwd=cwd,
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate(stdin.encode() if stdin else None)
    except TimeoutError as error:
        raise CommandError(argv, -1, f"no end after {timeout_s:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())
    output = Output(
        out.decode(errors="replace"), err.decode(errors="replace"), process.returncode or 0
    )
    if check and output.exit_code != 0:
        raise CommandError(argv, output.exit_code, output.stderr or output.stdout)
    return output


async def detach(argv: list[str], *, timeout_s: float = 60.0) -> None:
    """Run a command that goes to the background by itself; return when it has.

    Its words go to a file: the end of a pipe would be waited for as long as any process has it
    open that was started in the same moment. Raises CommandError as `run` does.
    """
    with tempfile.TemporaryFile() as words:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=subprocess.DEVNULL, stdout=words, stderr=words
        )
        try:
            async with asyncio.timeout(timeout_s):
                await process.wait()
        except TimeoutError as error:
            raise CommandError(argv, -1, f"no end after {timeout_s:g} s") from error
        finally:
            if process.returncode is None:
                process.kill()
                await asyncio.shield(process.wait())
        if process.returncode:
            words.seek(0)
            said = words.read(_WORDS_MAX_BYTES).decode(errors="replace")
            raise CommandError(argv, process.returncode, said)


async def follow(
    argv: list[str],
    on_line: Callable[[str], None],
    *,
    stdin: str = "",
    timeout_s: float,
    env: dict[str, str] | None = None,
    background: Sequence[Path] = (),
) -> None:
    """Run a long command, handing over each line it prints (both outputs) as it comes.

    `background` are the entry files of the control group to run in (cgroups.py): the command then
    gives way to everything else, and is what the kernel ends first when memory is short.
    Raises CommandError with its last lines on a non-zero exit and on the time limit. The command
    and whatever it started are killed when this call ends early or this process dies.
    """
    process = await asyncio.create_subprocess_exec(
        *_DIES_WITH_US,
        *(_in_background(background) if background else ()),
        *argv,
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=env,
    )
    last: deque[str] = deque(maxlen=40)
    try:
        async with asyncio.timeout(timeout_s):
            if process.stdin is not None:
                process.stdin.write(stdin.encode())
                process.stdin.close()
            assert process.stdout is not None
            async for line in _lines(process.stdout):
                last.append(line)
                on_line(line)
            await process.wait()
    except TimeoutError as error:
        last.append(f"no end after {timeout_s:g} s")
        raise CommandError(argv, -1, "\n".join(last)) from error
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())
    if process.returncode:
        raise CommandError(argv, process.returncode, "\n".join(last))


# A PID namespace of its own: the kernel ends every process in it together with the first one.
_DIES_WITH_US = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"),
)
_LONGEST_LINE = 4096


def _in_background(entry_files: Sequence[Path]) -> list[str]:
    enter = 'for file in $1; do echo 0 >"$file" || exit; done; shift; exec "$@"'
    lower = ["choom", "--adjust", "500", "--", "nice", "-n", "15"]
    return ["sh", "-c", enter, "sh", " ".join(map(str, entry_files)), *lower]


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    rest = b""
    while chunk := await stream.read(65536):
        *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            if line:
                yield line[:_LONGEST_LINE].decode(errors="replace")
        rest = rest[:_LONGEST_LINE]
    if rest:
        yield rest.decode(errors="replace")
