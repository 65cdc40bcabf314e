"""Control groups of sandboxes: limits, usage, freezing, killing; version 1 and version 2 kernels.

A Cgroup is a name, not a handle: it holds no state, every call reads the kernel, and every call may
be repeated. Version 1 keeps one directory per mounted hierarchy, version 2 one in all.
"""

import asyncio
import contextlib
import errno
import functools
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from alcove.concurrency import spawn
from alcove.node import notify, pidfd

_MOUNT = Path("/sys/fs/cgroup")
_CPU_PERIOD_US = 100_000
_SHARES_PER_CPU = 1024
_WEIGHT_PER_CPU = 100
_FREEZE_LIMIT_S = 2.0
_REMOVE_LIMIT_S = 5.0
_KILL_LIMIT_S = 10.0
_V1_CONTROLLERS = frozenset(
    {"blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "misc",
     "net_cls", "net_prio", "perf_event", "pids", "rdma"}
)  # fmt: skip
_V2_CONTROLLERS = frozenset({"cpu", "cpuset", "io", "memory", "pids"})


class CgroupError(Exception):
    """The kernel refused a change to a control group; the message names group and file."""


@dataclass(frozen=True, slots=True)
class Limits:
    memory_bytes: int
    cpu_count: float
    pids: int


@dataclass(frozen=True, slots=True)
class Usage:
    cpu_seconds: float
    memory_used: int
    """Bytes in use without file cache that the kernel can drop."""
    memory_cache: int


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the hierarchies of this machine are mounted."""

    unified: Path | None
    controllers: dict[str, Path]
    """Version 1: controller (or "name=systemd") -> mount point."""

    @property
    def roots(self) -> list[Path]:
        if self.unified is not None:
            return [self.unified]
        return list(dict.fromkeys(self.controllers.values()))


class Cgroup:
    """One control group, by its path relative to each hierarchy's mount ("/alcove/12")."""

    def __init__(self, path: str, mount: Path = _MOUNT) -> None:
        self.path = path.strip("/")
        self._layout = _layout(mount)

    def create(self) -> None:
        """Make the directories in every hierarchy, parents too. Repeatable."""
        for root in self._layout.roots:
            directory = root
            for part in Path(self.path).parts:
                if self._layout.unified is not None:
                    _delegate(directory)
                directory /= part
                directory.mkdir(exist_ok=True)
                _inherit_cpuset(directory)

    def exists(self) -> bool:
        return any((root / self.path).is_dir() for root in self._layout.roots)

    def missing_controllers(self) -> list[str]:
        """What this machine lacks to hold a sandbox to its limits, each with what to do."""
        if self._layout.unified is not None:
            have = set((self._layout.unified / "cgroup.controllers").read_text().split())
            needed = ["cpu", "memory", "pids"]
        else:
            have = set(self._layout.controllers)
            needed = ["cpu", "cpuacct", "freezer", "memory", "pids"]
        return [
            f"the cgroup controller {name!r} is missing; mount it or enable it in the kernel"
            for name in needed
            if name not in have
        ]

    def limit(self, limits: Limits) -> None:
        """Set all limits. Memory may not be lowered below what is in use."""
        quota = int(limits.cpu_count * _CPU_PERIOD_US)
        if self._layout.unified is not None:
            self._write("memory", "memory.max", limits.memory_bytes)
            self._write("memory", "memory.swap.max", 0, optional=True)
            self._write("cpu", "cpu.max", f"{quota} {_CPU_PERIOD_US}")
        else:
            self._limit_memory_v1(limits.memory_bytes)
            self._write("cpu", "cpu.cfs_period_us", _CPU_PERIOD_US)
            self._write("cpu", "cpu.cfs_quota_us", quota)
        self.weigh(limits.cpu_count)
        self._write("pids", "pids.max", limits.pids)

    def weigh(self, cpu_count: float) -> None:
        """Set what it gets of the processors while others want them too."""
        if self._layout.unified is not None:
            self._write("cpu", "cpu.weight", max(1, int(_WEIGHT_PER_CPU * cpu_count)))
        else:
            self._write("cpu", "cpu.shares", max(2, int(_SHARES_PER_CPU * cpu_count)))

    def limit_memory(self, memory_bytes: int) -> None:
        """Change the memory limit alone."""
        if self._layout.unified is not None:
            self._write("memory", "memory.max", memory_bytes)
        else:
            self._limit_memory_v1(memory_bytes)

    def memory_limit(self) -> int:
        """The memory limit in bytes. Raises CgroupError if the group is gone or has none."""
        v2 = self._layout.unified is not None
        text = self._read("memory", "memory.max" if v2 else "memory.limit_in_bytes")
        if not text.isdecimal():
            raise CgroupError(f"{self.path}: has no memory limit")
        return int(text)

    def children(self) -> set[str]:
        """Names of the groups inside this one, in any hierarchy."""
        directories = [root / self.path for root in self._layout.roots]
        entries = [entry for path in directories if path.is_dir() for entry in path.iterdir()]
        return {entry.name for entry in entries if entry.is_dir()}

    def usage(self) -> Usage:
        """What the group used so far (CPU) and uses now (memory). Raises CgroupError if gone."""
        if self._layout.unified is not None:
            cpu_s = self._table("cpu", "cpu.stat").get("usage_usec", 0) / 1e6
            total = int(self._read("memory", "memory.current"))
            stat = self._table("memory", "memory.stat")
            cache = stat.get("inactive_file", 0) + stat.get("active_file", 0)
        else:
            cpu_s = int(self._read("cpuacct", "cpuacct.usage")) / 1e9
            total = int(self._read("memory", "memory.usage_in_bytes"))
            stat = self._table("memory", "memory.stat")
            cache = stat.get("total_inactive_file", 0) + stat.get("total_active_file", 0)
        return Usage(cpu_s, max(0, total - cache), cache)

    def oom_kills(self) -> int:
        """How many processes the kernel killed here because the memory limit was reached."""
        file = "memory.events" if self._layout.unified is not None else "memory.oom_control"
        try:
            return self._table("memory", file).get("oom_kill", 0)
        except CgroupError:
            return 0

    def procs(self) -> list[int]:
        """Processes of the group, in the host's numbering."""
        try:
            text = (self._any_directory() / "cgroup.procs").read_text()
        except (FileNotFoundError, OSError):
            return []
        return [int(line) for line in text.split()]

    def entry_files(self) -> list[Path]:
        """The files to which a process writes its pid (or 0) to enter the group everywhere."""
        return [root / self.path / "cgroup.procs" for root in self._layout.roots]

    async def freeze(self) -> None:
        """Stop every process and return once all have stopped (about a millisecond)."""
        if self._layout.unified is not None:
            self._write("", "cgroup.freeze", 1)
        else:
            self._write("freezer", "freezer.state", "FROZEN")
        deadline = time.monotonic() + _FREEZE_LIMIT_S
        # Version 1 has no event for this and moves on only when the file is read.
        while not self._frozen():
            if time.monotonic() > deadline:
                self.thaw()
                raise CgroupError(f"{self.path}: does not freeze; thawed it again")
            await asyncio.sleep(0.0005)

    def thaw(self) -> None:
        if self._layout.unified is not None:
            self._write("", "cgroup.freeze", 0, optional=True)
        else:
            self._write("freezer", "freezer.state", "THAWED", optional=True)

    async def kill(self) -> None:
        """End every process, also frozen ones, and reap those that are our children.

        Returns when the group is empty. Raises CgroupError if a process cannot be killed.
        """
        try:
            async with asyncio.timeout(_KILL_LIMIT_S):
                while pids := self.procs():
                    await self._kill_once(pids)
        except TimeoutError as error:
            raise CgroupError(
                f"{self.path}: processes {self.procs()} do not end; look for them in state D"
            ) from error

    async def remove(self) -> None:
        """Kill what is inside, then remove the directories. Repeatable."""
        await self.kill()
        for root in self._layout.roots:
            await _rmdir(root / self.path)

    async def memory_above(self, threshold_bytes: int) -> AsyncIterator[int]:
        """Yield the memory in use each time it has risen to the threshold; ends with the group.

        Version 2 has no usage notification that does not also slow the group down: there the
        threshold becomes memory.high, so a group above it is throttled until it is relieved.
        """
        watch = self._watch_v1 if self._layout.unified is None else self._watch_v2
        with contextlib.ExitStack() as stack:
            try:
                event = await watch(threshold_bytes, stack)
            except FileNotFoundError:
                return
            while self.exists():
                try:
                    used = self._memory_charged()
                except CgroupError:
                    return
                if used >= threshold_bytes:
                    yield used
                await event.wait()
                event.clear()

    async def _watch_v1(self, threshold_bytes: int, stack: contextlib.ExitStack) -> asyncio.Event:
        directory = self._layout.controllers["memory"] / self.path
        event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        stack.callback(os.close, event_fd)
        usage = os.open(directory / "memory.usage_in_bytes", os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, usage)
        order = f"{event_fd} {usage} {threshold_bytes}"
        # The kernel takes 10 to 30 ms for this (an RCU grace period): not on the loop.
        write = asyncio.to_thread((directory / "cgroup.event_control").write_text, order)
        writing = spawn(write, name=f"watch memory of {self.path}")
        try:
            await asyncio.shield(writing)
        finally:
            # Cancelled or not, the descriptors must stay open until the thread is done with them.
            await asyncio.wait([writing])
        return notify.on_readable(event_fd, stack)

    async def _watch_v2(self, threshold_bytes: int, stack: contextlib.ExitStack) -> asyncio.Event:
        self._write("memory", "memory.high", threshold_bytes)
        return notify.on_modified(self._file("memory", "memory.events"), stack)

    def _memory_charged(self) -> int:
        v2 = self._layout.unified is not None
        return int(self._read("memory", "memory.current" if v2 else "memory.usage_in_bytes"))

    def _limit_memory_v1(self, memory_bytes: int) -> None:
        # The limit with swap must never be below the one without, so the order depends on the
        # direction of the change; trying both ways round needs no look at the old values.
        files = ["memory.limit_in_bytes"]
        if self._file("memory", "memory.memsw.limit_in_bytes").exists():
            files = ["memory.memsw.limit_in_bytes", *files]
        try:
            for file in files:
                self._write("memory", file, memory_bytes)
        except CgroupError:
            for file in reversed(files):
                self._write("memory", file, memory_bytes)

    async def _kill_once(self, pids: list[int]) -> None:
        opened = pidfd.open_all(pids)
        try:
            members = set(self.procs())
            for pid, fd in opened.items():
                # A pid reused since the list was read belongs to somebody else.
                if pid in members:
                    pidfd.kill(fd)
            self.thaw()
            for pid, fd in opened.items():
                if pid in members:
                    await pidfd.ended(fd)
                    pidfd.reap(fd)
        finally:
            for fd in opened.values():
                os.close(fd)

    def _frozen(self) -> bool:
        if self._layout.unified is not None:
            return self._table("", "cgroup.events").get("frozen") == 1
        return self._read("freezer", "freezer.state") == "FROZEN"

    def _any_directory(self) -> Path:
        roots = self._layout.controllers
        return (self._layout.unified or roots.get("memory") or self._layout.roots[0]) / self.path

    def _file(self, controller: str, name: str) -> Path:
        root = self._layout.unified or self._layout.controllers.get(controller)
        if root is None:
            raise CgroupError(
                f"the cgroup controller {controller!r} is not mounted; mount it or boot with it"
            )
        return root / self.path / name

    def _read(self, controller: str, name: str) -> str:
        file = self._file(controller, name)
        try:
            return file.read_text().strip()
        except OSError as error:
            raise CgroupError(f"{file}: {error.strerror}") from error

    def _table(self, controller: str, name: str) -> dict[str, int]:
        lines = (line.split() for line in self._read(controller, name).splitlines())
        return {line[0]: int(line[1]) for line in lines if len(line) == 2}

    def _write(
        self, controller: str, name: str, value: int | str, *, optional: bool = False
    ) -> None:
        file = self._file(controller, name)
        try:
            file.write_text(str(value))
        except OSError as error:
            if not optional:
                raise CgroupError(f"{file}: {value}: {error.strerror}") from error


@functools.cache
def _layout(mount: Path) -> _Layout:
    if (mount / "cgroup.controllers").exists():
        return _Layout(mount, {})
    controllers: dict[str, Path] = {}
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, options = line.split()[:4]
        if kind == "cgroup" and Path(where).is_relative_to(mount):
            for option in options.split(","):
                if option in _V1_CONTROLLERS or option.startswith("name="):
                    controllers[option] = Path(where)
    if not controllers:
        raise CgroupError(f"no cgroup hierarchy is mounted at {mount}; mount cgroup2 there")
    return _Layout(None, controllers)


def _delegate(directory: Path) -> None:
    """Version 2: let the children of a group have the controllers that it has."""
    have = set((directory / "cgroup.controllers").read_text().split())
    given = set((directory / "cgroup.subtree_control").read_text().split())
    missing = (have & _V2_CONTROLLERS) - given
    if missing:
        text = " ".join(f"+{name}" for name in sorted(missing))
        try:
            (directory / "cgroup.subtree_control").write_text(text)
        except OSError as error:
            raise CgroupError(f"{directory}: cannot delegate {text}: {error.strerror}") from error


def _inherit_cpuset(directory: Path) -> None:
    """Version 1: a new cpuset is empty and nothing may enter it until it has CPUs and memory."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        file = directory / name
        with contextlib.suppress(FileNotFoundError):
            if not file.read_text().strip():
                file.write_text((directory.parent / name).read_text())


async def _rmdir(directory: Path) -> None:
    deadline = time.monotonic() + _REMOVE_LIMIT_S
    # The kernel drops the last reference of a dead process a moment after its end, silently.
    while not _removed(directory):
        if time.monotonic() > deadline:
            raise CgroupError(f"{directory}: stays busy; look for processes or groups inside")
        await asyncio.sleep(0.002)


def _removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise CgroupError(f"{directory}: cannot be removed: {error.strerror}") from error
    return True
