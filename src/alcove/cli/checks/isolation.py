"""What may hold a sandbox: gVisor's runsc, and KVM, both really tried."""

import re
import subprocess
import sys
from pathlib import Path

from alcove.cli.checks.finding import COMMAND_TIMEOUT_S, Check, Finding, command, fail, ok
from alcove.cli.checks.kvm_memory import KvmMemory
from alcove.cli.installation import Installation

_RUNSC_MIN = "20240729"
_KVM = Path("/dev/kvm")
_KVM_TIMEOUT_S = 5.0
_PROBE_ARGV = ("runsc", "--platform=systrap", "--network=none", "--ignore-cgroups", "do", "true")
_INSTALL = "install runsc 20240729 or later (bin/up does; Debian 12: from backports)"


def runsc(_: Installation) -> Finding:
    try:
        version = command("runsc", "--version").stdout
    except FileNotFoundError:
        return fail("runsc", "not installed", _INSTALL)
    found = re.search(r"\b(20\d{6})\b", version)
    name = found[1] if found else version.strip()
    if found and found[1] < _RUNSC_MIN:
        return fail("runsc", f"{name} is too old for the systrap platform", _INSTALL)
    tried = command(*_PROBE_ARGV, timeout_s=COMMAND_TIMEOUT_S)
    if tried.returncode != 0:
        last = (tried.stderr.strip().splitlines() or ["no message"])[-1]
        fix = f"see `{' '.join(_PROBE_ARGV)}`; seccomp and ptrace must be allowed to root here"
        return fail("runsc", f"{name} does not run a program under systrap: {last}", fix)
    return ok("runsc", f"{name}, a program ran under systrap")


def kvm(installation: Installation) -> Finding:
    """No driver needs KVM yet, so its absence is no fault."""
    if not _KVM.exists():
        return ok("kvm", "none: gVisor isolates without it")
    memory = KvmMemory(installation.data_dir)
    remembered = memory.recall()
    if remembered is not None:
        return ok("kvm", f"{remembered} (remembered; --fresh tries again)")
    answer = _try_kvm()
    memory.keep(answer)
    return ok("kvm", answer)


def _try_kvm() -> str:
    argv = (sys.executable, "-m", "alcove.cli.checks.kvm_probe")
    try:
        tried = command(*argv, timeout_s=_KVM_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return "a probe guest hung: not used, gVisor isolates without it"
    if tried.returncode == 0:
        return "a 64-bit probe guest ran"
    why = (tried.stdout.strip() or tried.stderr.strip() or f"exit {tried.returncode}")[-200:]
    return f"not usable ({why}): gVisor isolates without it"


CHECKS = (
    Check("runsc", runsc, needs_root=True),
    Check("kvm", kvm, needs_root=True),
)
