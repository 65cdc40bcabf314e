"""What the guest says of itself: alive, its load, its variables (contract e2b 3.1)."""

import os
import time

from alcove.guest.app import Route
from alcove.guest.environment import Environment
from alcove.guest.http import Request, Response

_KIB = 1024
_MIB = 1024 * 1024


def routes(environment: Environment) -> list[Route]:
    load = _CpuLoad()

    async def health(_: Request) -> Response:
        return Response(204, [("cache-control", "no-store")])

    async def envs(_: Request) -> Response:
        return Response.json(environment.env_vars)

    async def metrics(_: Request) -> Response:
        return Response.json(_metrics(load))

    return [("GET", "/health", health), ("GET", "/envs", envs), ("GET", "/metrics", metrics)]


def _metrics(load: "_CpuLoad") -> dict[str, float]:
    memory = _meminfo()
    total = memory.get("MemTotal", 0)
    cached = memory.get("Cached", 0)
    used = total - memory.get("MemAvailable", memory.get("MemFree", 0) + cached)
    disk = os.statvfs("/")
    return {
        "ts": int(time.time()),
        "cpu_count": os.cpu_count() or 1,
        "cpu_used_pct": load.percent(),
        "mem_total": total,
        "mem_used": used,
        "mem_cache": cached,
        "mem_total_mib": total // _MIB,
        "mem_used_mib": used // _MIB,
        "disk_used": (disk.f_blocks - disk.f_bfree) * disk.f_frsize,
        "disk_total": disk.f_blocks * disk.f_frsize,
    }


def _meminfo() -> dict[str, int]:
    """Sizes of /proc/meminfo in bytes."""
    sizes = {}
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            name, _, rest = line.partition(":")
            sizes[name] = int(rest.split()[0]) * _KIB
    return sizes


class _CpuLoad:
    """CPU use since the last look, in percent of one core."""

    def __init__(self) -> None:
        self._last = (time.monotonic(), _cpu_seconds())

    def percent(self) -> float:
        then, used_then = self._last
        now, used = self._last = (time.monotonic(), _cpu_seconds())
        passed = now - then
        return round(max(used - used_then, 0) / passed * 100, 2) if passed > 0 else 0.0


def _cpu_seconds() -> float:
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    with open("/proc/stat", encoding="ascii") as file:
        fields = [int(text) for text in file.readline().split()[1:]]
    # user nice system idle iowait irq softirq steal: everything but idle and iowait
    busy = sum(fields[:3]) + sum(fields[5:8])
    # gVisor keeps no machine-wide count; what living processes have used is the next best.
    return (busy or sum(_process_ticks())) / ticks_per_s


def _process_ticks() -> list[int]:
    ticks = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue  # ended meanwhile
        ticks.append(int(fields[11]) + int(fields[12]))
    return ticks
