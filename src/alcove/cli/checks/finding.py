"""What a check of `alcove doctor` is and says."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from alcove.cli.installation import Installation

COMMAND_TIMEOUT_S = 8.0


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    level: Level
    what_is: str
    how_to_fix: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One question about this machine. `look` may take seconds, and may raise anything."""

    name: str
    look: Callable[[Installation], Finding]
    needs_root: bool = False

    def __call__(self, installation: Installation, *, root: bool) -> Finding:
        if self.needs_root and not root:
            return Finding(self.name, Level.WARN, "not tried", "run `alcove doctor` as root")
        try:
            return self.look(installation)
        except subprocess.TimeoutExpired as error:
            what = f"no end of {error.cmd[0]} after {error.timeout:g} s"
            return Finding(self.name, Level.FAIL, what, "see what keeps it from ending")
        except Exception as error:
            return Finding(self.name, Level.FAIL, f"the check broke: {error}", "please report this")


def ok(name: str, what_is: str) -> Finding:
    return Finding(name, Level.OK, what_is)


def warn(name: str, what_is: str, how_to_fix: str) -> Finding:
    return Finding(name, Level.WARN, what_is, how_to_fix)


def fail(name: str, what_is: str, how_to_fix: str) -> Finding:
    return Finding(name, Level.FAIL, what_is, how_to_fix)


def command(
    *argv: str, stdin: str = "", timeout_s: float = COMMAND_TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
    """Run a command under a time limit; its exit code is the caller's to judge."""
    return subprocess.run(
        argv, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False
    )
