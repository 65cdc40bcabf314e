"""Sandboxes under gVisor (runsc, systrap): an application kernel in user space.

prepare() runs `runsc create`, which leaves an empty sentry waiting; boot() and restore() then speak
to its control socket, about 60 ms faster than the command line, which is the fall-back for runsc
versions whose socket we do not know. Everything a place holds is under place.directory and in
place.cgroup, so stop() is: kill the group, remove the files.
"""

import asyncio
import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import structlog

from alcove.node import pidfd
from alcove.node.cgroups import Cgroup, CgroupError, Limits
from alcove.node.drivers import bundle, instance, link, manifest, urpc
from alcove.node.drivers.driver import (
    Capability,
    DriverError,
    Found,
    Image,
    NotRunningError,
    Place,
    PortClosedError,
    SnapshotDamagedError,
)
from alcove.node.drivers.instance import Instance, Phase
from alcove.node.run import CommandError, run

_log = structlog.get_logger(__name__)

OLDEST_VERSION = (20240729, 0)
_DIRECT_VERSIONS = frozenset({(20240729, 0)})
"""Versions whose control socket was read and tested; others are driven by the command line."""

PIDS = 8192
_CREATE_LIMIT_S = 30.0
_START_LIMIT_S = 60.0
_SNAPSHOT_LIMIT_S = 300.0
_SNAPSHOT_RETRIES_S = (0.5, 1.5, 4.0)
_FILES = ("checkpoint.img", "pages_meta.img", "pages.img")
_LONGEST_SOCKET_PATH = 107

_ENTER = """\
console=$1; shift
while [ "$1" != -- ]; do echo 0 >"$1" || exit 125; shift; done
shift
exec "$@" </dev/null >>"$console" 2>&1
"""
"""Enter the control group before runsc does anything, so that stop() ends it wherever it is; the
guest inherits the console from the command."""

_HIDE = 'mount -t tmpfs none /proc/sys/net && exec "$@"'
_HIDE_SYSCTLS = ("unshare", "--mount", "sh", "-c", _HIDE, "sh")
"""runsc 20240729 takes a network namespace that has net.core.rmem_default for the host's and
refuses it; newer kernels have it in every namespace, so the command line must not see it."""


def memory_limit_bytes(image: Image) -> int:
    """The hard limit of the sandbox's control group: the guest's memory and room for the sentry.

    At this limit the kernel kills the whole sandbox; the memory guard acts below it.
    """
    guest = image.memory_mib << 20
    return guest + max(96 << 20, guest // 8)


class GvisorDriver:
    """One sandbox per place, each its own runsc container with its own --root."""

    name = "gvisor"
    isolation = "application-kernel"
    capabilities = frozenset(
        {Capability.MEMORY_SNAPSHOT, Capability.DISK_LIMIT, Capability.NETWORK_POLICY}
    )

    def __init__(self, runsc: str = "runsc", *, use_control_socket: bool = True) -> None:
        self._runsc = runsc
        self._use_control_socket = use_control_socket
        self._version: tuple[int, int] | None = None

    async def problems(self) -> list[str]:
        found = []
        if os.geteuid() != 0:
            found.append("gVisor sandboxes need root; start the node as root")
        if shutil.which(self._runsc) is None:
            found.append(f"{self._runsc} is not installed; bin/packages installs it")
        elif (version := await self.version()) < OLDEST_VERSION:
            found.append(
                f"runsc is version {version[0]}, older than {OLDEST_VERSION[0]}; bin/packages"
                " installs a newer one"
            )
        try:
            found += Cgroup("/").missing_controllers()
        except CgroupError as error:
            found.append(str(error))
        return found

    async def version(self) -> tuple[int, int]:
        """Release date and revision of runsc, asked once."""
        if self._version is None:
            output = await run([self._runsc, "--version"], timeout_s=10)
            match = re.search(r"(\d{8})\.(\d+)", output.stdout)
            if match is None:
                raise DriverError(f"{self._runsc} --version says no release: {output.stdout!r}")
            self._version = int(match[1]), int(match[2])
        return self._version

    async def prepare(self, place: Place, image: Image) -> None:
        if _occupant(place, Phase.PREPARED, image) is None:
            await self._create(place, image)

    async def boot(self, place: Place, image: Image) -> None:
        if _occupant(place, Phase.RUNNING, image) is not None:
            return
        await self._start(place, image, None)

    async def restore(self, place: Place, image: Image) -> None:
        if image.snapshot is None:
            raise DriverError(f"image {image.build_id} has no snapshot; build the template")
        if _occupant(place, Phase.RUNNING, image) is not None:
            return
        if not manifest.check(image.snapshot, self.name, await self._version_text()):
            await asyncio.to_thread(manifest.check_contents, image.snapshot)
        await self._start(place, image, image.snapshot)

    async def snapshot(self, place: Place, into: Path) -> None:
        occupant = _occupant(place, Phase.RUNNING)
        if occupant is None:
            raise NotRunningError(f"{place.name}: nothing runs here that could be saved")
        with manifest.new_directory(into) as directory:
            if occupant.direct:
                await self._checkpoint(place, directory)
            else:
                to = f"--image-path={directory}"
                await self._cli(place, "checkpoint", "--leave-running", "--compression=none", to)
            version = await self._version_text()
            await asyncio.to_thread(manifest.write, directory, self.name, version)

    async def stop(self, place: Place) -> None:
        instance.forget(place.directory)
        await Cgroup(place.cgroup).kill()
        for remains in (_bundle(place), _root(place)):
            shutil.rmtree(remains, ignore_errors=True)
        _runsc_log(place).unlink(missing_ok=True)

    async def find(self, place: Place) -> Found:
        occupant = instance.read(place.directory)
        if occupant is None or not _alive(occupant) or not _socket(place).exists():
            return Found.GONE
        match occupant.phase:
            case Phase.RUNNING:
                return Found.RUNNING
            case Phase.PREPARED:
                return Found.PREPARED
            case Phase.CREATING | Phase.STARTING:
                return Found.GONE

    async def ended(self, place: Place) -> str:
        occupant = instance.read(place.directory)
        if occupant is None or not occupant.pid:
            return "unknown"
        try:
            fd = os.pidfd_open(occupant.pid)
        except ProcessLookupError:
            return _cause(place, None)
        try:
            if not _alive(occupant):
                return _cause(place, pidfd.reap(fd))
            await pidfd.ended(fd)
            return _cause(place, pidfd.reap(fd))
        finally:
            os.close(fd)

    async def dial(self, place: Place, port: int, timeout_s: float) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(timeout_s):
                await asyncio.get_running_loop().sock_connect(sock, (place.address, port))
        except (OSError, TimeoutError) as error:
            sock.close()
            if await self.find(place) is not Found.RUNNING:
                raise NotRunningError(f"{place.name}: no sandbox runs here") from error
            if isinstance(error, ConnectionRefusedError):
                raise PortClosedError(f"{place.name}: nothing listens on port {port}") from error
            raise DriverError(f"{place.name}: port {port} does not answer") from error
        except BaseException:
            sock.close()
            raise
        return sock

    async def _create(self, place: Place, image: Image) -> Instance:
        """Make an empty sentry wait in the place, whatever was there before."""
        await self.stop(place)
        created = Instance(Phase.CREATING, _key(image))
        instance.write(place.directory, created)
        if len(os.fsencode(_socket(place))) > _LONGEST_SOCKET_PATH:
            raise DriverError(f"{_socket(place)} is too long for a socket; use a shorter data_dir")
        for directory in (_root(place), _bundle(place), place.disk, place.console.parent):
            directory.mkdir(parents=True, exist_ok=True)
        (_bundle(place) / "config.json").write_text(json.dumps(bundle.config(place, image)))
        pid_file = _bundle(place) / "pid"
        group = Cgroup(place.cgroup)
        group.create()
        # The sentry shows the guest as its memory whatever the limit is when it starts; after that
        # the limit gets the room that the sentry itself needs.
        group.limit(Limits(image.memory_mib << 20, image.vcpu_count, PIDS))
        options = (f"--bundle={_bundle(place)}", f"--pid-file={pid_file}")
        await self._cli(place, "create", *options, limit_s=_CREATE_LIMIT_S)
        group.limit_memory(memory_limit_bytes(image))
        pid = int(pid_file.read_text())
        started = pidfd.start_time(pid)
        if started is None:
            raise DriverError(f"{place.name}: the new sandbox ended at once{_last_words(place)}")
        created = replace(created, phase=Phase.PREPARED, pid=pid, pid_started=started)
        _still_there(place, created)
        instance.write(place.directory, created)
        return created

    async def _start(self, place: Place, image: Image, snapshot: Path | None) -> None:
        direct = self._use_control_socket and await self.version() in _DIRECT_VERSIONS
        occupant = _occupant(place, Phase.PREPARED, image) or await self._create(place, image)
        try:
            if direct:
                try:
                    await self._start_direct(place, occupant, snapshot)
                except (urpc.UrpcError, OSError) as error:
                    _still_there(place, occupant)
                    _log.warning("gvisor.direct_start_failed", place=place.name, error=str(error))
                    occupant = await self._create(place, image)
                else:
                    return
            await self._start_by_cli(place, occupant, snapshot)
        except BaseException as error:
            await asyncio.shield(self._undo(place, occupant))
            if isinstance(error, CommandError | OSError):
                raise DriverError(f"{place.name}: does not start: {error}") from error
            raise

    async def _undo(self, place: Place, occupant: Instance) -> None:
        """Clean up after a failed start, unless the place was stopped or taken meanwhile."""
        now = instance.read(place.directory)
        if now is not None and now.nonce == occupant.nonce:
            await self.stop(place)

    async def _start_direct(self, place: Place, occupant: Instance, snapshot: Path | None) -> None:
        device = await link.open_device(place.netns)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, device.fd)
            files = [] if snapshot is None else [snapshot / name for name in _FILES]
            fds = [stack.enter_context(_open(file)) for file in files]
            call = functools.partial(urpc.call, _socket(place), timeout_s=_START_LIMIT_S)
            starting = replace(occupant, phase=Phase.STARTING)
            _still_there(place, occupant)
            instance.write(place.directory, starting)
            await call("Network.CreateLinksAndRoutes", link.description(place, device), [device.fd])
            if snapshot is None:
                await call("containerManager.StartRoot", place.name)
            else:
                await call("containerManager.Restore", {"HavePagesFile": True}, fds)
            _still_there(place, starting)
            instance.write(place.directory, replace(starting, phase=Phase.RUNNING))

    async def _start_by_cli(self, place: Place, occupant: Instance, snapshot: Path | None) -> None:
        starting = replace(occupant, phase=Phase.STARTING, direct=False)
        _still_there(place, occupant)
        instance.write(place.directory, starting)
        addresses = ["nsenter", f"--net={place.netns}", "ip", "-batch", "-"]
        await run(addresses, stdin=link.commands(), timeout_s=10)
        if snapshot is None:
            await self._cli(place, "start")
        else:
            options = (f"--bundle={_bundle(place)}", f"--image-path={snapshot}", "--detach")
            await self._cli(place, "restore", *options)
        _still_there(place, starting)
        instance.write(place.directory, replace(starting, phase=Phase.RUNNING))

    async def _checkpoint(self, place: Place, directory: Path) -> None:
        """Save over the control socket, where a failure leaves the sandbox running.

        The sentry cannot save a connection that is just being opened to the outside (gVisor
        20240729 fails with an encoding error); such a state passes, so it is tried again.
        """
        for delay_s in (*_SNAPSHOT_RETRIES_S, None):
            try:
                await self._checkpoint_once(place, directory)
            except urpc.RemoteError as error:
                if delay_s is None:
                    raise DriverError(f"{place.name}: cannot be saved: {error}") from error
                _log.info("gvisor.snapshot_retried", place=place.name, error=str(error)[:200])
                await asyncio.sleep(delay_s)
            except urpc.UrpcError as error:
                raise DriverError(f"{place.name}: saving broke off: {error}") from error
            else:
                return

    async def _checkpoint_once(self, place: Place, directory: Path) -> None:
        with contextlib.ExitStack() as stack:
            fds = [stack.enter_context(_open(directory / name, write=True)) for name in _FILES]
            await urpc.call(
                _socket(place),
                "containerManager.Checkpoint",
                {"metadata": {"compression": "none"}, "have_pages_file": True, "Resume": True},
                fds,
                timeout_s=_SNAPSHOT_LIMIT_S,
            )

    async def _cli(
        self, place: Place, command: str, *options: str, limit_s: float = _START_LIMIT_S
    ) -> None:
        """Run one runsc command on the place's container, inside the place's control group."""
        entry = [str(file) for file in Cgroup(place.cgroup).entry_files()]
        argv = [
            "sh",
            "-c",
            _ENTER,
            "sh",
            str(place.console),
            *entry,
            "--",
            *_HIDE_SYSCTLS,
            self._runsc,
        ]
        argv += [*_flags(place), command, *options, place.name]
        try:
            await run(argv, timeout_s=limit_s)
        except CommandError as error:
            raise DriverError(
                f"{place.name}: runsc {command} failed with exit code {error.exit_code}"
                f"{_last_words(place)}"
            ) from error

    async def _version_text(self) -> str:
        return "{}.{}".format(*await self.version())


def _flags(place: Place) -> list[str]:
    return [
        f"--root={_root(place)}",
        f"--log={_runsc_log(place)}",
        "--platform=systrap",
        "--network=sandbox",
        f"--overlay2=root:dir={place.disk}",
        "--file-access-mounts=exclusive",  # the bundle never changes: no look at the host per stat
        "--cpu-num-from-quota",
        "--net-disconnect-ok",
        "--gso=false",
    ]


def _root(place: Place) -> Path:
    return place.directory / "runsc"


def _bundle(place: Place) -> Path:
    return place.directory / "bundle"


def _runsc_log(place: Place) -> Path:
    return place.directory / "runsc.log"


def _socket(place: Place) -> Path:
    return _root(place) / f"runsc-{place.name}.sock"


def _key(image: Image) -> str:
    """Equal for images that the same prepared container serves."""
    parts = (image.rootfs, image.agent, image.vcpu_count, image.memory_mib)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _occupant(place: Place, phase: Phase, image: Image | None = None) -> Instance | None:
    """The living instance of a place if it is in this phase (and made for this image)."""
    occupant = instance.read(place.directory)
    if occupant is None or occupant.phase is not phase or not _alive(occupant):
        return None
    if image is not None and occupant.image_key != _key(image):
        return None
    return occupant if _socket(place).exists() else None


def _alive(occupant: Instance) -> bool:
    return occupant.pid != 0 and pidfd.start_time(occupant.pid) == occupant.pid_started


def _still_there(place: Place, mine: Instance) -> None:
    """Raise NotRunningError if stop() or another start came in between."""
    now = instance.read(place.directory)
    if now is None or now.nonce != mine.nonce:
        raise NotRunningError(f"{place.name}: was stopped while it started")


def _cause(place: Place, status: str | None) -> str:
    if Cgroup(place.cgroup).oom_kills() > 0:
        return "out of memory"
    return status or "unknown"


def _last_words(place: Place) -> str:
    with contextlib.suppress(OSError):
        words = _runsc_log(place).read_text(errors="replace").strip()
        if words:
            return f": {words[-1000:]}"
    return ""


@contextlib.contextmanager
def _open(file: Path, *, write: bool = False) -> Iterator[int]:
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC if write else os.O_RDONLY
    try:
        fd = os.open(file, flags | os.O_CLOEXEC, 0o600)
    except FileNotFoundError as error:
        raise SnapshotDamagedError(f"{file}: is missing") from error
    try:
        yield fd
    finally:
        os.close(fd)
