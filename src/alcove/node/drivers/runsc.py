"""runsc's command line and the files of one place's container.

Every command runs inside the place's control group from its first instruction, so that stop() ends
it wherever it is.
"""

import json
import re
from pathlib import Path

from alcove.node.cgroups import Cgroup
from alcove.node.drivers.bundle import OOM_SCORE_ADJ
from alcove.node.drivers.driver import DriverError, Place
from alcove.node.run import CommandError, run

OLDEST_VERSION = (20240729, 0)
_SET_USER_ID_VERSION = (20250820, 0)
"""From here on gVisor can honour set-user-ID bits (sudo, su); before, it ignores them."""
CREATE_LIMIT_S = 30.0
START_LIMIT_S = 60.0

_ENTER = f"""\
console=$1; shift
echo {OOM_SCORE_ADJ} >/proc/self/oom_score_adj
while [ "$1" != -- ]; do echo 0 >"$1" || exit 125; shift; done
shift
exec "$@" </dev/null >>"$console" 2>&1
"""
"""Enter the control group, then run the command; the guest inherits the console from it. The score
is in config.json too, but only the command line's start looks there."""

_HIDE = 'mount -t tmpfs none /proc/sys/net && exec "$@"'
_HIDE_SYSCTLS = ("unshare", "--mount", "--propagation=slave", "sh", "-c", _HIDE, "sh")
"""runsc 20240729 takes a network namespace that has net.core.rmem_default for the host's and
refuses it; newer kernels have it in every namespace, so the command line must not see it. What the
host mounts later under the place's disk still comes through: volumes."""


class Runsc:
    """The runsc program, by name or path."""

    def __init__(self, program: str) -> None:
        self.program = program
        self._version: tuple[int, int] | None = None

    async def version(self) -> tuple[int, int]:
        """Release date and revision, asked once."""
        if self._version is None:
            output = await run([self.program, "--version"], timeout_s=10)
            match = re.search(r"(\d{8})\.(\d+)", output.stdout)
            if match is None:
                raise DriverError(f"{self.program} --version says no release: {output.stdout!r}")
            self._version = int(match[1]), int(match[2])
        return self._version

    async def version_text(self) -> str:
        return "{}.{}".format(*await self.version())

    async def create(self, place: Place, *, writable: bool = False) -> int:
        """Start an empty sandbox that waits for orders, and return its pid.

        `writable`: what it writes goes into its root directory, and not into a layer above.
        """
        pid_file = bundle(place) / "pid"
        options = (f"--bundle={bundle(place)}", f"--pid-file={pid_file}")
        overlay = ("--overlay2=none",) if writable else ()
        await self._command(place, "create", *options, limit_s=CREATE_LIMIT_S, flags_last=overlay)
        return int(pid_file.read_text())

    async def start(self, place: Place) -> None:
        await self._command(place, "start")

    async def restore(self, place: Place, snapshot: Path) -> None:
        options = (f"--bundle={bundle(place)}", f"--image-path={snapshot}", "--detach")
        await self._command(place, "restore", *options)

    async def checkpoint(self, place: Place, into: Path) -> None:
        options = ("--leave-running", "--compression=none", f"--image-path={into}")
        await self._command(place, "checkpoint", *options)

    async def pause(self, place: Place) -> None:
        await self._command(place, "pause")

    async def resume(self, place: Place) -> None:
        await self._command(place, "resume")

    async def status(self, place: Place) -> str:
        """What `runsc state` says: "running", "paused" or another."""
        argv = [self.program, f"--root={root(place)}", "state", place.name]
        try:
            state = json.loads((await run(argv, timeout_s=START_LIMIT_S)).stdout)
        except (CommandError, ValueError) as error:
            raise DriverError(f"{place.name}: runsc does not tell its state: {error}") from error
        return str(state.get("status"))

    async def _command(
        self,
        place: Place,
        command: str,
        *options: str,
        limit_s: float = START_LIMIT_S,
        flags_last: tuple[str, ...] = (),
    ) -> None:
        """`flags_last` wins over the flags of every command."""
        entries = [str(file) for file in Cgroup(place.cgroup).entry_files()]
        argv = ["sh", "-c", _ENTER, "sh", str(place.console), *entries, "--", *_HIDE_SYSCTLS]
        argv += [self.program, *flags(place), *flags_last]
        if await self.version() >= _SET_USER_ID_VERSION:
            argv.append("--allow-suid")
        argv += [command, *options, place.name]
        try:
            await run(argv, timeout_s=limit_s)
        except CommandError as error:
            raise DriverError(
                f"{place.name}: runsc {command} failed with exit code {error.exit_code}"
                f"{last_words(place)}"
            ) from error


def root(place: Place) -> Path:
    """Runsc's own state, one directory per place: removing it is all that `runsc delete` does."""
    return place.directory / "runsc"


def bundle(place: Place) -> Path:
    return place.directory / "bundle"


def log(place: Place) -> Path:
    return place.directory / "runsc.log"


def control_socket(place: Place) -> Path:
    return root(place) / f"runsc-{place.name}.sock"


def last_words(place: Place) -> str:
    """The end of what runsc complained about, ready to be appended to a message."""
    try:
        words = log(place).read_text(errors="replace").strip()
    except OSError:
        return ""
    return f": {words[-1000:]}" if words else ""


def flags(place: Place) -> list[str]:
    """Global options of every command on this place."""
    return [
        f"--root={root(place)}",
        f"--log={log(place)}",
        "--platform=systrap",
        "--network=sandbox",
        f"--overlay2=root:dir={place.disk}",
        "--file-access-mounts=shared",  # volumes change on the host, and in other sandboxes
        "--cpu-num-from-quota",
        "--net-disconnect-ok",
        "--network-processors-per-channel=2",
    ]
