"""POST /reboot: end everything the sandbox runs and keep its disk, as a power cycle would.

The agent itself goes on. The node calls it where only the disk is to be saved or used; the start
command runs again after it, and the boot id changes with the /init before it.
"""

import asyncio
import os
import signal

from alcove.guest.app import Route
from alcove.guest.children import Children
from alcove.guest.http import HttpError, Request, Response
from alcove.guest.keeping import Keeper
from alcove.guest.machine import Machine
from alcove.guest.memory import descendants
from alcove.guest.ports import Forwarder
from alcove.guest.processes import Processes
from alcove.guest.watchers import Watchers

_LIMIT_S = 10.0
_LOOK_AGAIN_S = 0.25
"""Ends are announced; this is for one that was announced to a parent that does not wait."""


class Reboot:
    """Ends what runs. `machine` None: the agent does not own what it runs on."""

    def __init__(
        self,
        children: Children,
        processes: Processes,
        keeper: Keeper,
        *,
        watchers: Watchers,
        forwarder: Forwarder,
        machine: Machine | None,
    ) -> None:
        self._children = children
        self._processes = processes
        self._keeper = keeper
        self._watchers = watchers
        self._forwarder = forwarder
        self._machine = machine

    @property
    def routes(self) -> list[Route]:
        return [("POST", "/reboot", self._reboot)]

    async def _reboot(self, _: Request) -> Response:
        try:
            async with asyncio.timeout(_LIMIT_S):
                ended = await self._end_all()
        except TimeoutError as error:
            raise HttpError(500, f"processes do not end in {_LIMIT_S:g} s") from error
        self._processes.forget_ended()
        await self._watchers.close()
        self._forwarder.close()
        if self._machine is not None:
            self._machine.forget_memory()
        return Response.json({"ended": ended})

    async def _end_all(self) -> int:
        """End every process but the agent; how many there were."""
        seen: set[int] = set()
        self._keeper.let_go()
        for process in self._processes.running():
            process.kill(signal.SIGKILL)  # its clients are told at once
        while running := descendants():
            seen |= set(running)
            for pid in running:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            await self._children.next_end(_LOOK_AGAIN_S)
        return len(seen)
