"""The one door to host commands: argv lists in, output out, errors that paste into a shell."""

import asyncio
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path


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
