"""Kernel notifications as asyncio events: eventfds, and inotify on one file."""

import asyncio
import contextlib
import ctypes
import os
from pathlib import Path

_IN_MODIFY = 0x2
_IN_NONBLOCK = 0x800


def on_readable(fd: int, stack: contextlib.ExitStack) -> asyncio.Event:
    """An event set whenever an eventfd or inotify descriptor has something; drained at once."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()

    def drain() -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(fd, 4096)
        event.set()

    loop.add_reader(fd, drain)
    stack.callback(loop.remove_reader, fd)
    return event


def on_modified(file: Path, stack: contextlib.ExitStack) -> asyncio.Event:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_CLOEXEC | _IN_NONBLOCK)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    stack.callback(os.close, fd)
    if libc.inotify_add_watch(fd, os.fsencode(file), _IN_MODIFY) < 0:
        raise FileNotFoundError(ctypes.get_errno(), "inotify_add_watch", str(file))
    return on_readable(fd, stack)
