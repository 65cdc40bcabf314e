"""`python -m alcove.node.gate.main`: binds its doors, goes to the background, serves as nobody.

Started and watched by the node (node/gatekeeper.py), outlives it like the resolver. The command
returns when the gate accepts connections.
"""

import argparse
import os
import pwd
import resource
import sys
from ipaddress import IPv4Network
from pathlib import Path

import uvloop

from alcove import telemetry
from alcove.node.gate.lookup import Lookup
from alcove.node.gate.policies import Policies
from alcove.node.gate.server import Doors, Gate

_USER = "nobody"
_LOG_MAX_BYTES = 1 << 20


def main() -> None:
    arguments = _arguments()
    doors = Doors.open(arguments.address, arguments.port, arguments.dns_port, arguments.control)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    _to_background(arguments.pid_file, arguments.log)
    _give_up_privileges()
    telemetry.configure("gate", "INFO", sys.stderr)
    policies = Policies(arguments.policies, arguments.slot_network)
    uvloop.run(Gate(policies, Lookup(arguments.address)).serve(doors))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="alcove.node.gate")
    for name in ("pid-file", "policies", "control", "log"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--slot-network", type=IPv4Network, required=True)
    for name in ("port", "dns-port"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--version", required=True, help="another one is started anew")
    return parser.parse_args()


def _to_background(pid_file: Path, log: Path) -> None:
    """As a daemon does; the doors are open, so whoever started it may go on."""
    if log.exists() and log.stat().st_size > _LOG_MAX_BYTES:
        log.unlink()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    if os.fork():
        os._exit(0)
    os.setsid()
    draft = pid_file.with_suffix(".tmp")
    draft.write_text(f"{os.getpid()}\n")
    draft.replace(pid_file)
    for target, source in ((0, nothing), (1, output), (2, output)):
        os.dup2(source, target)


def _give_up_privileges() -> None:
    user = pwd.getpwnam(_USER)
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)


if __name__ == "__main__":
    main()
