"""The agent as a program: PID 1 of a sandbox, or an ordinary process in tests.

Tests set ALCOVE_GUEST_HOST, ALCOVE_GUEST_PORT (0: any) and ALCOVE_GUEST_ROOT. Prints one line when
it listens. SIGTERM ends all children, then the agent. Only as PID 1, or below the given root, it
changes the machine it runs on.
"""

import asyncio
import gc
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

from alcove.guest import activity, files, filesystem, health, init, memory, mounts, ports
from alcove.guest.app import App
from alcove.guest.children import Children, adopt_orphans
from alcove.guest.elevation import SOCKET, Elevation
from alcove.guest.environment import Environment
from alcove.guest.http import Request, Response
from alcove.guest.keeping import Keeper
from alcove.guest.machine import Machine
from alcove.guest.process_rpc import ProcessRpc
from alcove.guest.processes import Processes
from alcove.guest.reboot import Reboot
from alcove.guest.rpc import Rpc
from alcove.guest.selector import RenewableSelector
from alcove.guest.server import open_streams, serve
from alcove.guest.watchers import Watchers
from alcove.wire.hosts import GUEST_PORT

_MAX_OPEN_FILES = 1024 * 1024
_EVERY_PROCESS = -1


@dataclass(frozen=True, slots=True)
class _Options:
    host: str
    port: int
    root: str | None


def build_app(
    environment: Environment,
    children: Children,
    machine: Machine | None = None,
    renew: Callable[[], None] = lambda: None,
) -> App:
    """The one place where the guest's parts meet. `renew`: of the event queue (selector.py)."""
    processes = Processes(children)
    rpc = Rpc(environment)
    keeper = Keeper(processes)
    ProcessRpc(processes, keeper).register(rpc)
    watchers = Watchers()
    forwarder = ports.Forwarder()
    volumes = mounts.Mounts()
    filesystem.register(rpc, watchers)
    reboot = Reboot(
        children, processes, keeper, watchers=watchers, forwarder=forwarder, machine=machine
    )
    return App(
        environment,
        [
            *health.routes(environment),
            *init.routes(environment, machine, children, renew, volumes),
            *mounts.routes(volumes),
            *files.routes(environment, watchers),
            *ports.routes(forwarder),
            *memory.routes(processes),
            *activity.routes(open_streams),
            *reboot.routes,
            ("POST", "/settle", _settle),
            *rpc.routes,
        ],
    )


def main() -> int:
    options = _read_options()
    os.umask(0o022)  # modes of new files as the contract has them; commands expect it too
    _raise_open_files()
    adopt_orphans()
    selector = RenewableSelector()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(_run(options, selector.renew))
    return 0


async def _run(options: _Options, renew: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    children = Children()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGCHLD, children.reap)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    root = options.root or ("/" if os.getpid() == 1 else None)
    machine = None if root is None else Machine(root)
    if machine is not None:
        machine.mark(sandbox_id=None, template_id=None)
        machine.teach_python()
    environment = Environment()
    app = build_app(environment, children, machine, renew)
    if machine is not None and machine.replace_sudo():
        Elevation(environment, children).listen((options.root or "") + SOCKET)
    server = await serve(app, options.host, options.port)
    port = server.sockets[0].getsockname()[1]
    sys.stdout.write(f"alcove guest agent listens on {options.host}:{port}\n")
    sys.stdout.flush()
    _keep_for_ever()
    await stop.wait()
    server.close()
    _end_children(children)


async def _settle(_: Request) -> Response:
    """Before a snapshot: leave as few and as quiet pages as possible to every clone."""
    _keep_for_ever()
    return Response(204)


def _keep_for_ever() -> None:
    """What lives now stays: the collector need not touch (and un-share) its pages again."""
    gc.collect()
    gc.freeze()


def _end_children(children: Children) -> None:
    # Everything ends with PID 1 anyway; this gives programs their SIGTERM.
    targets = [_EVERY_PROCESS] if os.getpid() == 1 else children.pids()
    for pid in targets:
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            continue


def _raise_open_files() -> None:
    """As many as allowed up to a bound; commands inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_OPEN_FILES, _MAX_OPEN_FILES))
    except (OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _read_options() -> _Options:
    # Not argparse: it would stay in the memory of every sandbox.
    return _Options(
        host=os.environ.get("ALCOVE_GUEST_HOST", "0.0.0.0"),
        port=int(os.environ.get("ALCOVE_GUEST_PORT", GUEST_PORT)),
        root=os.environ.get("ALCOVE_GUEST_ROOT"),
    )
