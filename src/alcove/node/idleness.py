"""Makes the timers of an idle sandbox coarse, and fine again when traffic comes.

ACTIVE ──no traffic for a while──▶ QUIET ──traffic──▶ ACTIVE
"""

import asyncio
from typing import Protocol, runtime_checkable

import structlog

from alcove.node.drivers.driver import Driver, DriverError, Place

_log = structlog.get_logger()


@runtime_checkable
class QuietingDriver(Protocol):
    """A driver whose idle sandboxes cost processor time unless they are told to be quiet."""

    async def quiet(self, place: Place) -> None: ...

    async def active(self, place: Place) -> None: ...


class Idleness:
    """Whether one sandbox is idle. `touch` is called for every piece of traffic: it is cheap."""

    def __init__(self, driver: Driver, place: Place, quiet_after_s: float) -> None:
        self._driver = driver if isinstance(driver, QuietingDriver) else None
        self._place = place
        self._quiet_after_s = quiet_after_s
        self._time = asyncio.get_running_loop().time
        self._last = self._time()
        self._quiet = False
        self._wake = asyncio.Event()

    def touch(self) -> None:
        self._last = self._time()
        if self._quiet:
            self._wake.set()

    async def run(self) -> None:
        """Follow the traffic until cancelled; nothing is done while nothing changes."""
        if self._driver is None:
            return
        while True:
            rest_s = self._last + self._quiet_after_s - self._time()
            if rest_s > 0:
                await asyncio.sleep(rest_s)
                continue
            self._wake.clear()
            self._quiet = True
            try:
                await self._driver.quiet(self._place)
                await self._wake.wait()
                await self._driver.active(self._place)
            except DriverError as error:
                _log.warning("sandbox.quieting_failed", place=self._place.name, error=str(error))
                return
            finally:
                self._quiet = False
