"""How a place becomes a warm sandbox, and how that is woken.

restore -> the agent answers -> its first steps are done once -> a line to it -> frozen    -> thawed
"""

import socket

import structlog

from alcove.node.drivers.driver import Driver, Found, Image, Place
from alcove.node.ground import Ground
from alcove.node.guest_client import GuestClient, GuestError
from alcove.node.guest_commands import GuestCommands
from alcove.node.idleness import RestingDriver

_log = structlog.get_logger()

_ANSWER_S = 10.0
_USER = ""
"""The template's own."""
_WEIGHT_WHILE_WARMING = 0.2
"""Of a processor: who waits for a sandbox comes first."""


class Warming:
    """Warms and wakes."""

    def __init__(self, driver: Driver, ground: Ground) -> None:
        self._driver = driver
        self._ground = ground
        self._lines: dict[int, socket.socket] = {}
        """To the agents of warm sandboxes, by slot: on the first call nothing need be dialled."""

    async def warm(self, place: Place, image: Image) -> None:
        """Leave a frozen sandbox in a prepared place.

        Raises DriverError, GuestError or CgroupError.

        Its agent also does what every client asks first, so that its pages and threads are there.
        """
        self._ground.weigh(place, _WEIGHT_WHILE_WARMING)
        await self._driver.restore(place, image)
        guest = GuestClient(self._driver, place, "")
        await guest.healthy(_ANSWER_S)
        await guest.init({"hostname": "template"}, _ANSWER_S)
        await self._run_first(place, image.warm_command or "true")
        self._lines[place.slot] = await guest.open_line(_ANSWER_S)
        self._ground.weigh(place, image.vcpu_count)
        if isinstance(self._driver, RestingDriver):
            await self._driver.freeze(place)

    async def _run_first(self, place: Place, command: str) -> None:
        """What fails is no reason to give it up: only the client's first request takes longer."""
        try:
            finished = await GuestCommands(self._driver, place).run(command, _USER, _ANSWER_S)
        except GuestError as error:
            # An image without a shell, for one.
            _log.info("place.no_first_command", place=place.name, error=str(error))
            return
        if finished.exit_code:
            _log.warning("place.first_command_failed", place=place.name, output=finished.output)

    def line(self, slot: int) -> socket.socket | None:
        """The line to what was warm there, for the caller to own."""
        return self._lines.pop(slot, None)

    def hang_up(self, slot: int) -> None:
        """Close the line if there is one: what was warm there is given up."""
        line = self.line(slot)
        if line is not None:
            line.close()

    async def wake(self, place: Place) -> bool:
        """Let it run; False if nothing is there to run."""
        if await self._driver.find(place) is not Found.RUNNING:
            return False
        if isinstance(self._driver, RestingDriver):
            self._driver.thaw(place)
        return True
