"""Acting before the sandbox runs out of memory: end the largest process, if that would help.

Under gVisor the kernel's own remedy takes the whole sandbox, so the node watches the limit from
outside and calls here (POST /memory/relieve {"usedBytes": what the sandbox uses}). Where files in
memory (/dev/shm) hold what is used, ending a process frees nothing: then none is.
"""

import json
import os
import signal
from dataclasses import dataclass

from alcove.guest.app import Route
from alcove.guest.http import HttpError, Request, Response
from alcove.guest.processes import Process, Processes

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# Positions in /proc/PID/stat, counted after the command's closing parenthesis.
_PARENT, _RSS_PAGES = 1, 21
_MAX_BODY_BYTES = 1024
# Shares of what is used, from which on ending a process helps: its own, or that of all processes
# together, of which then one after the other is ended.
_LARGE_SHARE, _TOGETHER_SHARE = 1 / 8, 1 / 4


@dataclass(frozen=True, slots=True)
class Running:
    """A process, as /proc shows it."""

    pid: int
    parent: int
    command: str
    rss_bytes: int


def routes(processes: Processes) -> list[Route]:
    async def relieve(request: Request) -> Response:
        used_bytes = _used_bytes(await request.read(_MAX_BODY_BYTES))
        return Response.json(_end_largest(processes, used_bytes))

    return [("POST", "/memory/relieve", relieve)]


def _used_bytes(body: bytes) -> int:
    """What the sandbox uses, as the node sees it; 0 if it did not say."""
    try:
        data = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        raise HttpError(400, f"the body is not valid JSON: {error}") from error
    used = data.get("usedBytes", 0) if isinstance(data, dict) else None
    if not isinstance(used, int) or used < 0:
        raise HttpError(400, "the body must be an object, usedBytes a whole number")
    return used


def _end_largest(processes: Processes, used_bytes: int) -> dict[str, str | int]:
    """End one process and tell the clients of the command it belongs to; {} if none would help."""
    running = descendants()
    while running:
        victim = max(running.values(), key=lambda process: process.rss_bytes)
        together = sum(process.rss_bytes for process in running.values())
        if victim.rss_bytes < used_bytes * _LARGE_SHARE and together < used_bytes * _TOGETHER_SHARE:
            return {}
        # Before the signal: once it is gone, so is the way to the command that started it.
        owner = _owner(victim, running, processes)
        if owner is not None:
            owner.tell(
                f"alcove: process {victim.pid} ({victim.command}) was ended: "
                "the sandbox is out of memory"
            )
        try:
            os.kill(victim.pid, signal.SIGKILL)
        except ProcessLookupError:
            del running[victim.pid]
            continue
        return {"pid": victim.pid, "cmd": victim.command, "rssBytes": victim.rss_bytes}
    return {}


def _owner(victim: Running, running: dict[int, Running], processes: Processes) -> Process | None:
    """The started command the victim is, or descends from."""
    current: Running | None = victim
    while current is not None:
        process = processes.by_pid(current.pid)
        if process is not None and process.running:
            return process
        current = running.get(current.parent)
    return None


def descendants() -> dict[int, Running]:
    """The processes that descend from the agent: as PID 1 that is all others."""
    everything = _read_all()
    agent = os.getpid()
    chosen = {}
    for process in everything.values():
        line = [process]
        while line[-1].parent in everything and line[-1].parent != agent:
            line.append(everything[line[-1].parent])
        if line[-1].parent == agent:
            chosen[process.pid] = process
    return chosen


def _read_all() -> dict[int, Running]:
    found = {}
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                text = file.read()
        except OSError:
            continue  # ended meanwhile
        command, _, rest = text.partition("(")[2].rpartition(")")
        fields = rest.split()
        rss_bytes = int(fields[_RSS_PAGES]) * _PAGE_BYTES
        found[int(name)] = Running(int(name), int(fields[_PARENT]), command, rss_bytes)
    return found
