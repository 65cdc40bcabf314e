"""The processes clients have started, their output, and how they end.

    RUNNING ──exit──▶ DRAINING ──all output read, or output given up──▶ ENDED ──30 s──▶ forgotten

RUNNING is listed and takes signals; ENDED still tells a late client how it went. Output goes to the
clients attached at that moment: with none it is dropped, with a slow one reading pauses, so neither
memory grows nor bytes are lost. Only the process's own deadline or a signal ends it, never a client
that goes away (contract e2b 3.6).
"""

import os
import signal
from asyncio import Event, TimerHandle, get_running_loop
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from alcove.guest.children import Children
from alcove.guest.feed import Feed, Message
from alcove.guest.spawn import Launch, SpawnError, Stdio, launch
from alcove.guest.stdin import Input
from alcove.guest.terminal import open_terminal, resize
from alcove.guest.users import User

_KEEP_ENDED_S = 30
_MAX_ENDED = 1024
_PIPE_CHUNK_BYTES = 32 * 1024
_PTY_CHUNK_BYTES = 16 * 1024
# Chunks read from one source before others get their turn.
_READS_PER_TURN = 8
# More than a pipe holds: what is still in there when output is given up, but no more.
_READS_WHEN_GIVING_UP = 64
_EVENT_OVERHEAD_BYTES = 128
# A terminal's last output passes through the kernel after its writer has ended, and gVisor never
# reports the end of it.
_PTY_REST_S = 0.05

STDOUT, STDERR, PTY = "stdout", "stderr", "pty"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a client asks to start."""

    config: Message
    """Echoed by List."""
    argv: list[str]
    env: dict[str, str]
    cwd: str
    user: User
    tag: str | None
    stdin: bool
    pty_size: tuple[int, int] | None
    """Columns and rows; None: pipes instead of a terminal."""
    timeout_ms: int | None
    max_processes: int | None


class Process:
    """One process and the clients attached to it."""

    def __init__(
        self, wanted: Wanted, on_end: Callable[["Process"], None], children: Children
    ) -> None:
        self.config = wanted.config
        self.tag = wanted.tag
        self.exited = Event()
        self.end: Message | None = None
        """The end event, once everything is over."""
        self.stdin: Input | None = None
        self.on_exit: Callable[[], None] = _nothing
        """Called when the process itself has ended."""
        self._on_end = on_end
        # Kept, as asking for it is a system call each time (getpid).
        self._loop = get_running_loop()
        self._master: int | None = None
        self._sources: dict[int, str] = {}
        self._feeds: set[Feed] = set()
        self._paused = False
        self._status: int | None = None
        self._give_up_output = False
        self._deadline: TimerHandle | None = None
        self.pid = self._start(wanted)
        children.watch(self.pid, self._on_exit)
        for fd in self._sources:
            os.set_blocking(fd, False)
            self._loop.add_reader(fd, self._on_readable, fd)
        if wanted.timeout_ms is not None:
            self._deadline = self._loop.call_later(
                wanted.timeout_ms / 1000, self.kill, signal.SIGKILL
            )

    @property
    def running(self) -> bool:
        return self._status is None

    @property
    def is_pty(self) -> bool:
        return self._master is not None

    def attach(self) -> Feed:
        """Events from now on; the first is the start event."""
        feed = Feed(self._resume)
        feed.put(_event("start", {"pid": self.pid}), _EVENT_OVERHEAD_BYTES)
        if self.end is None:
            self._feeds.add(feed)
        else:
            feed.put(self.end, _EVENT_OVERHEAD_BYTES)
            feed.close()
        return feed

    def detach(self, feed: Feed) -> None:
        self._feeds.discard(feed)
        self._resume()

    def kill(self, number: int) -> None:
        """Send a signal to this one process; after it, output of others is not waited for."""
        if self._status is not None:
            return
        self._give_up_output = True
        os.kill(self.pid, number)

    def resize(self, cols: int, rows: int) -> None:
        if self._master is not None and self._master in self._sources:
            resize(self._master, cols, rows)

    def tell(self, text: str) -> None:
        """Add a line of our own to what the clients see."""
        name = PTY if self.is_pty else STDERR
        self._deliver(name, f"{text}\r\n".encode() if self.is_pty else f"{text}\n".encode())

    def _start(self, wanted: Wanted) -> int:
        given: list[int] = []
        try:
            stdio = (
                self._open_pipes(wanted, given)
                if wanted.pty_size is None
                else self._open_terminal(wanted, wanted.pty_size)
            )
            return launch(
                Launch(
                    wanted.argv, wanted.env, wanted.cwd, wanted.user, stdio, wanted.max_processes
                )
            )
        except OSError as error:
            self._close_all()
            raise SpawnError(f"cannot start '{wanted.argv[0]}': {error.strerror}") from error
        except SpawnError:
            self._close_all()
            raise
        finally:
            for fd in given:
                os.close(fd)

    def _open_pipes(self, wanted: Wanted, given: list[int]) -> Stdio:
        stdin = None
        if wanted.stdin:
            stdin, writer = os.pipe()
            given.append(stdin)
            self.stdin = Input(writer)
        ends = []
        for name in (STDOUT, STDERR):
            reader, end = os.pipe()
            self._sources[reader] = name
            given.append(end)
            ends.append(end)
        return Stdio(None, stdin, *ends)

    def _open_terminal(self, wanted: Wanted, size: tuple[int, int]) -> Stdio:
        self._master, path = open_terminal(wanted.user, *size)
        self._sources[self._master] = PTY
        self.stdin = Input(os.dup(self._master))
        return Stdio(terminal=path)

    def _on_readable(self, fd: int) -> None:
        for _ in range(_READS_PER_TURN):
            if not self._read_once(fd) or self._paused:
                return

    def _read_once(self, fd: int) -> bool:
        """Read and deliver one chunk; say whether there may be more at once."""
        name = self._sources[fd]
        size = _PTY_CHUNK_BYTES if name == PTY else _PIPE_CHUNK_BYTES
        try:
            data = os.read(fd, size)
        except BlockingIOError:
            return False
        except OSError:  # EIO: the last descriptor of a terminal's other end was closed
            data = b""
        if not data:
            self._close_source(fd)
            self._end_if_over()
            return False
        self._deliver(name, data)
        return len(data) == size

    def _deliver(self, name: str, data: bytes) -> None:
        message = _event("data", {name: data})
        for feed in self._feeds:
            feed.put(message, len(data) + _EVENT_OVERHEAD_BYTES)
        if any(feed.full for feed in self._feeds):
            self._pause()

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            for fd in self._sources:
                self._loop.remove_reader(fd)

    def _resume(self) -> None:
        if self._paused and not any(feed.full for feed in self._feeds):
            self._paused = False
            for fd in self._sources:
                self._loop.add_reader(fd, self._on_readable, fd)

    def _on_exit(self, status: int) -> None:
        self._status = status
        self.exited.set()
        if self._deadline is not None:
            self._deadline.cancel()
        if self.stdin is not None:
            self.stdin.abandon()
        if self._give_up_output:
            self._read_rest()
        elif self.is_pty:
            self._loop.call_later(_PTY_REST_S, self._read_rest)
        else:
            self._end_if_over()
        self.on_exit()

    def _read_rest(self) -> None:
        """Deliver what is there now and close, though others may still hold the other ends."""
        for fd in list(self._sources):
            for _ in range(_READS_WHEN_GIVING_UP):
                if fd not in self._sources or not self._read_once(fd):
                    break
            if fd in self._sources:
                self._close_source(fd)
        self._end_if_over()

    def _end_if_over(self) -> None:
        if self._status is None or self._sources or self.end is not None:
            return
        self.end = _event("end", _end(self._status))
        for feed in self._feeds:
            feed.put(self.end, _EVENT_OVERHEAD_BYTES)
            feed.close()
        self._feeds.clear()
        self._on_end(self)

    def _close_source(self, fd: int) -> None:
        del self._sources[fd]
        self._loop.remove_reader(fd)
        os.close(fd)

    def _close_all(self) -> None:
        for fd in list(self._sources):
            self._close_source(fd)
        if self.stdin is not None:
            self.stdin.abandon()


class Processes:
    """All processes clients have started, by pid and by tag."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self._by_pid: dict[int, Process] = {}
        """In order of their start. Ended ones stay for a while."""
        self._ended: dict[int, TimerHandle] = {}

    def start(self, wanted: Wanted) -> Process:
        """Raises SpawnError."""
        process = Process(wanted, self._keep_for_a_while, self._children)
        self._forget(process.pid)  # an ended process whose number came round again
        self._by_pid[process.pid] = process
        return process

    def running(self) -> Iterator[Process]:
        return (process for process in self._by_pid.values() if process.running)

    def by_pid(self, pid: int) -> Process | None:
        return self._by_pid.get(pid)

    def by_tag(self, tag: str) -> Process | None:
        """The latest process with this tag."""
        tagged = (process for process in reversed(self._by_pid.values()) if process.tag == tag)
        return next(tagged, None)

    def forget_ended(self) -> None:
        """Forget at once what has ended: its numbers mean nothing to a client any more."""
        for pid in list(self._ended):
            self._forget(pid)

    def _keep_for_a_while(self, process: Process) -> None:
        if self._by_pid.get(process.pid) is not process:
            return  # its number has come round again while others held its output open
        if len(self._ended) >= _MAX_ENDED:
            self._forget(next(iter(self._ended)))
        loop = get_running_loop()
        self._ended[process.pid] = loop.call_later(_KEEP_ENDED_S, self._forget, process.pid)

    def _forget(self, pid: int) -> None:
        timer = self._ended.pop(pid, None)
        if timer is not None:
            timer.cancel()
        self._by_pid.pop(pid, None)


def _nothing() -> None: ...


def _event(kind: str, value: Message) -> Message:
    return {"event": {kind: value}}


def _end(status: int) -> dict[str, Any]:
    """The end event for a wait status; texts are those of Go, which clients show."""
    if os.WIFEXITED(status):
        code = os.WEXITSTATUS(status)
        text = f"exit status {code}"
        end = {"exitCode": code, "exited": True, "status": text}
        return end if code == 0 else end | {"error": text}
    number = os.WTERMSIG(status)
    text = f"signal: {(signal.strsignal(number) or f'signal {number}').lower()}"
    if os.WCOREDUMP(status):
        text += " (core dumped)"
    return {"exitCode": -1, "exited": False, "status": text, "error": text}
