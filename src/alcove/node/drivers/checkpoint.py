"""The files of a checkpoint, and saving into them over the control socket.

A failure on the socket leaves the sandbox running; one of `runsc checkpoint` may not.
"""

import asyncio
import contextlib
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import structlog

from alcove.node.drivers import runsc, urpc
from alcove.node.drivers.driver import DriverError, Place, SnapshotDamagedError
from alcove.node.drivers.runsc import Runsc

_log = structlog.get_logger(__name__)

Step = Callable[[], Awaitable[None]]

FILES = ("checkpoint.img", "pages_meta.img", "pages.img")
_LIMIT_S = 300.0
_RETRIES_S = (0.5, 1.5, 4.0)
_NOTICE_S = 0.05
"""What an idle program needs to see that its connections are gone, and to close them."""


async def save(place: Place, into: Path, before_kept: Step) -> None:
    """Save a running sandbox over its control socket. Raises DriverError.

    `before_kept` is called once, right before the save that is kept.

    Saving aborts the guest's TCP connections to the outside. A connection that the kept save itself
    aborts comes back as an event that its epoll instance can never get rid of, and hides all others
    (gVisor 20240729 puts it on a ready list that is not loaded yet), so a first save, thrown away,
    aborts them while their owners still run to notice.
    """
    await _save(place, [Path(os.devnull)] * len(FILES))
    await asyncio.sleep(_NOTICE_S)
    await before_kept()
    await _save(place, [into / name for name in FILES])


async def save_by_cli(program: Runsc, place: Place, into: Path, before_kept: Step) -> None:
    """The same by runsc's command line."""
    thrown_away = into / "first"
    await program.checkpoint(place, thrown_away)
    await asyncio.to_thread(shutil.rmtree, thrown_away)
    await asyncio.sleep(_NOTICE_S)
    await before_kept()
    await program.checkpoint(place, into)


@contextlib.contextmanager
def opened(file: Path, *, write: bool = False) -> Iterator[int]:
    """A descriptor of one of the files. Raises SnapshotDamagedError if it is not there."""
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC if write else os.O_RDONLY
    try:
        fd = os.open(file, flags | os.O_CLOEXEC, 0o600)
    except FileNotFoundError as error:
        raise SnapshotDamagedError(f"{file}: is missing") from error
    try:
        yield fd
    finally:
        os.close(fd)


async def _save(place: Place, files: list[Path]) -> None:
    """One save, tried again while a connection to the outside is just being opened.

    gVisor 20240729 fails with an encoding error on such a connection; the state passes.
    """
    for delay_s in (*_RETRIES_S, None):
        try:
            await _save_once(place, files)
        except urpc.RemoteError as error:
            if delay_s is None:
                raise DriverError(f"{place.name}: cannot be saved: {error}") from error
            _log.info("gvisor.snapshot_retried", place=place.name, error=str(error)[:200])
            await asyncio.sleep(delay_s)
        except urpc.UrpcError as error:
            raise DriverError(f"{place.name}: saving broke off: {error}") from error
        else:
            return


async def _save_once(place: Place, files: list[Path]) -> None:
    with contextlib.ExitStack() as stack:
        fds = [stack.enter_context(opened(file, write=True)) for file in files]
        await urpc.call(
            runsc.control_socket(place),
            "containerManager.Checkpoint",
            {"metadata": {"compression": "none"}, "have_pages_file": True, "Resume": True},
            fds,
            timeout_s=_LIMIT_S,
        )
