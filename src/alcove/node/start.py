"""One start of a sandbox, step by step: a place, a restore, the guest's identity.

Each step has its share of one time limit, and its own name in the timings and in what is said when
it fails. Nothing is cleaned up here: the life that asked for the start destroys what it left.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import structlog

from alcove.node import metrics
from alcove.node.cgroups import CgroupError
from alcove.node.drivers.driver import Driver, DriverError, Image, Place, SnapshotDamagedError
from alcove.node.errors import NodeError
from alcove.node.ground import Ground, Size
from alcove.node.guest_client import GuestClient, GuestError
from alcove.node.places import Places, Taken
from alcove.node.run import CommandError
from alcove.wire.node import SandboxSpec

_log = structlog.get_logger()

_WARM_ANSWER_S = 3.0
"""A warm sandbox answers in milliseconds; one that takes so long is replaced by a plain restore."""

Note = Callable[[Place | None], None]
"""Writes down which place a start has, before anything happens there."""


class StepFailedError(Exception):
    """A step of a start failed; the message names the step and the cause."""


@dataclass(slots=True)
class Timings:
    """Milliseconds of each step, in order."""

    ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        except (DriverError, GuestError, NodeError, CommandError, CgroupError, OSError) as error:
            raise StepFailedError(f"{name}: {error or type(error).__name__}") from error
        finally:
            spent = (time.perf_counter() - began) * 1000
            self.ms[name] = round(self.ms.get(name, 0.0) + spent, 3)


class Starter:
    """Starts sandboxes, so many at once."""

    def __init__(
        self,
        driver: Driver,
        ground: Ground,
        places: Places,
        *,
        at_once: int,
        timeout_s: float,
        process_limit: int,
        extra_ca_pem: str,
    ) -> None:
        self._driver = driver
        self._ground = ground
        self._places = places
        self._turns = asyncio.Semaphore(at_once)
        self._timeout_s = timeout_s
        self._process_limit = process_limit
        self._extra_ca_pem = extra_ca_pem

    async def start(self, spec: SandboxSpec, image: Image, timings: Timings, note: Note) -> None:
        """Start the sandbox. Raises StepFailedError."""
        with self._places.foreground():
            with timings.step("queue"):
                await self._turns.acquire()
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._steps(spec, image, timings, note)
            except TimeoutError as error:
                spent = ", ".join(f"{name} {ms:g} ms" for name, ms in timings.ms.items())
                raise StepFailedError(
                    f"the start took more than {self._timeout_s:g} s ({spent})"
                ) from error
            finally:
                self._turns.release()

    async def _steps(self, spec: SandboxSpec, image: Image, timings: Timings, note: Note) -> None:
        taken = await self._take(spec, image, timings, note)
        if taken.restored:
            try:
                await self._init(spec, taken.place, timings, _WARM_ANSWER_S)
            except StepFailedError as error:
                metrics.warm_let_down.inc()
                self._let_go(taken.place, note, error)
                taken = await self._take(spec, image, timings, note, warm=False)
            else:
                return
        place = await self._restored(taken, spec, image, timings, note)
        await self._init(spec, place, timings, self._timeout_s)

    async def _take(
        self, spec: SandboxSpec, image: Image, timings: Timings, note: Note, *, warm: bool = True
    ) -> Taken:
        with timings.step("place"):
            size = Size(spec.vcpu_count, spec.memory_mib, spec.disk_mib)
            taken = await self._places.take(image, size, warm=warm)
            note(taken.place)
            if not spec.internet:
                await self._ground.refuse_internet(taken.place)
            return taken

    async def _restored(
        self, taken: Taken, spec: SandboxSpec, image: Image, timings: Timings, note: Note
    ) -> Place:
        """Restore into a place; once more into a new one if a prepared place let us down."""
        while True:
            try:
                with timings.step("restore"):
                    await self._driver.restore(taken.place, image)
            except StepFailedError as error:
                if not taken.prepared or isinstance(error.__cause__, SnapshotDamagedError):
                    raise
                self._let_go(taken.place, note, error)
                taken = await self._take(spec, image, timings, note, warm=False)
            else:
                return taken.place

    async def _init(
        self, spec: SandboxSpec, place: Place, timings: Timings, timeout_s: float
    ) -> None:
        with timings.step("init"):
            guest = GuestClient(self._driver, place, spec.access_token)
            await guest.init(self._identity(spec), timeout_s)

    def _let_go(self, place: Place, note: Note, error: StepFailedError) -> None:
        note(None)
        _log.warning("place.let_down", slot=place.slot, error=str(error))
        self._places.release(place)

    def _identity(self, spec: SandboxSpec) -> dict[str, Any]:
        identity: dict[str, Any] = {
            "accessToken": spec.access_token,
            "envVars": spec.env_vars,
            "defaultUser": "user",
            "defaultWorkdir": "/home/user",
            "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "hostname": spec.sandbox_id,
            "sandboxId": spec.sandbox_id,
            "templateId": spec.template_id,
            "limits": {"nproc": self._process_limit},
        }
        if self._extra_ca_pem:
            identity["caBundle"] = self._extra_ca_pem
        return identity
