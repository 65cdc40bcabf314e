"""What a kernel says leaves from the thread that says it.

ipykernel hands every message and every flush to a thread of its own, and waits for flushes: twenty
switches between threads for a cell that prints nothing, each as dear as the cell in a sandbox.
ZeroMQ lets threads use a socket in turns, so here they take turns. That thread still does what has
to happen later: it sends what was written and never flushed.
"""
# Nothing public of ipykernel reaches what is changed here; the template pins its version.
# ruff: noqa: SLF001

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import zmq


def register(shell: Any) -> None:
    kernel: Any = getattr(shell, "kernel", None)
    thread = getattr(kernel, "iopub_thread", None)
    if thread is None:
        return  # IPython in a terminal
    # At its limit ZeroMQ throws output away. The server reads all, and holds whoever is faster.
    thread.socket.setsockopt(zmq.SNDHWM, 0)
    turns = _Turns(thread)
    thread.send_multipart = turns.send
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "flush_interval"):
            _Stream(stream, turns)
    # It waits for the thread whose work is done by now.
    kernel._execute_sleep = 0


class _Turns:
    """Of threads, at the socket for output."""

    def __init__(self, thread: Any) -> None:
        self._thread = thread
        self._came: list[FrameType | None] = []
        """Interrupts that were held back."""
        self._renew()
        # Nobody would give back a lock that another thread held when this process was forked.
        os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        with self._uninterrupted(), self._lock:
            yield

    @contextlib.contextmanager
    def _uninterrupted(self) -> Iterator[None]:
        """SIGINT is heeded when the block has ended.

        KeyboardInterrupt in it would leave half a message behind, which spoils the next one.
        """
        handler = signal.getsignal(signal.SIGINT)
        if (
            not callable(handler)
            or handler == self._note
            or threading.current_thread() is not threading.main_thread()
        ):
            yield  # nothing can happen here
            return
        self._came.clear()
        signal.signal(signal.SIGINT, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, handler)
        if self._came:
            handler(signal.SIGINT, self._came[-1])

    def _note(self, _: int, frame: FrameType | None) -> None:
        self._came.append(frame)

    def send(self, frames: list[Any], *arguments: Any, **options: Any) -> None:
        with self.taken():
            self._thread._really_send(frames, *arguments, **options)


class _Stream:
    """An OutStream whose flush is done when it returns, by whoever calls it."""

    def __init__(self, stream: Any, turns: _Turns) -> None:
        self._turns = turns
        self._send = stream._flush
        self._stream = stream
        self._later = False
        stream._flush = self.flush
        stream.flush = self.flush
        stream._schedule_flush = self.flush_later

    def flush(self) -> None:
        if not self._stream._buffers:
            return
        # Two threads that flush at once must not pass each other.
        with self._turns.taken():
            self._send()

    def flush_later(self) -> None:
        """Once for all that is written until then, whether it was flushed meanwhile or not."""
        if self._later:
            return
        stream = self._stream
        loop = stream.pub_thread.io_loop
        stream.pub_thread.schedule(lambda: loop.call_later(stream.flush_interval, self._flush_now))
        self._later = True

    def _flush_now(self) -> None:
        self._later = False
        self.flush()
