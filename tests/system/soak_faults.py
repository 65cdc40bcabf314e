"""Faults at random moments while a soak runs: dead processes, a cold page cache, a full disk."""

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from stack import Stack

READY_TIMEOUT_S = 60.0
SMALL_DISK_MIB = 6144
FULL_FOR_S = (0.3, 2.0)
AFTERMATH_S = 10.0
"""Processes that started again need so long to find each other on a busy machine."""
DEATHS = frozenset({"node", "control"})
"""What an answer of the API may have met. Of the edge, which is not on its way, and of a cold page
cache it must not notice anything."""
DEATHS_AND_FULL_DISK = DEATHS | {"disk"}


@contextmanager
def small_disk(stack: Stack) -> Iterator[Path]:
    """A file system of its own for snapshots, so that only they can run out of space."""
    folder, image = stack.data_dir / "snapshots", stack.data_dir / "small-disk.img"
    folder.mkdir(mode=0o700, exist_ok=True)
    deadline = time.monotonic() + READY_TIMEOUT_S
    while any(folder.iterdir()):  # of tests before this one, about to be collected
        assert time.monotonic() < deadline, f"{folder} must be empty before a disk hides it"
        time.sleep(0.5)
    with image.open("wb") as file:
        file.truncate(SMALL_DISK_MIB << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)
    try:
        shutil.rmtree(folder / "lost+found")
        folder.chmod(0o700)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=False)
        image.unlink()


class Faults(threading.Thread):
    """Makes one fault after the other until stop(); remembers when each was over."""

    def __init__(
        self, stack: Stack, chance: random.Random, kinds: tuple[str, ...], every_s: float
    ) -> None:
        super().__init__(name="faults", daemon=True)
        self._stack = stack
        self._chance = chance
        self._kinds = kinds
        self._every_s = every_s
        self._windows: list[tuple[str, float]] = []
        self._under_way: str | None = None
        self._over = threading.Event()
        self.made: Counter[str] = Counter()
        self.error: Exception | None = None

    def run(self) -> None:
        while not self._over.wait(self._chance.uniform(0.3, 1.7) * self._every_s):
            kind = self._chance.choice(self._kinds)
            self._under_way = kind
            try:
                self._make(kind)
            except Exception as error:
                self.error = error
                return
            finally:
                self._windows.append((kind, time.monotonic()))
                self._under_way = None
            self.made[kind] += 1

    def stop(self) -> None:
        self._over.set()
        self.join()
        if self.error is not None:
            raise self.error

    def excuse(self, begun: float, kinds: frozenset[str]) -> bool:
        """Whether something that ran from `begun` until now met a fault of one of these kinds."""
        if self._under_way in kinds:
            return True
        return any(kind in kinds and end + AFTERMATH_S >= begun for kind, end in self._windows)

    def _make(self, kind: str) -> None:
        match kind:
            case "cache":
                Path("/proc/sys/vm/drop_caches").write_text("1")
            case "disk":
                self._fill_disk()
            case _:
                self._kill(kind)

    def _kill(self, service: str) -> None:
        old = self._stack.pids()[service]
        os.kill(old, signal.SIGKILL)
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not (self._pid(service) not in {None, old} and self._ready()):
            assert time.monotonic() < deadline, f"{service} did not come back"
            time.sleep(0.1)

    def _pid(self, service: str) -> int | None:
        with suppress(OSError, ValueError, KeyError):
            return self._stack.pids()[service]
        return None

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self._stack.api_url}/ready", timeout=5).is_success
        except httpx.HTTPError:
            return False

    def _fill_disk(self) -> None:
        """Leave almost nothing free, for a moment."""
        ballast = self._stack.data_dir / "snapshots" / ".ballast"
        left = self._chance.choice((0, 1 << 20, 64 << 20, 300 << 20))
        free = shutil.disk_usage(ballast.parent).free
        try:
            with ballast.open("wb") as file, suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, max(1, free - left))
            time.sleep(self._chance.uniform(*FULL_FOR_S))
        finally:
            ballast.unlink(missing_ok=True)
