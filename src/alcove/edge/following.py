"""Follows what control says of sandboxes that begin to run, so that the first request is quick.

Each gets its route into the catalog and, to its agent, a tunnel into the pool: whoever has just
made a sandbox is about to run something there. Control also says when the time of one is made
shorter, so that nothing is sent to it while it is about to be paused. What is missed here is asked
for later.
"""

import asyncio

from alcove.edge.catalog import Asleep, Catalog, Route, read_answer
from alcove.edge.control_client import ControlClient, ControlSilentError
from alcove.edge.upstreams import Upstreams

_PATH = "/internal/routes"
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0


class Follower:
    def __init__(self, control: ControlClient, catalog: Catalog, upstreams: Upstreams) -> None:
        self._control = control
        self._catalog = catalog
        self._upstreams = upstreams

    async def run(self) -> None:
        """Follow for ever; a stream that ends is opened again."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                async for line in self._control.lines(_PATH):
                    self._learn(line)
                    pause_s = _FIRST_PAUSE_S
            except ControlSilentError:
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            await asyncio.sleep(pause_s)

    def _learn(self, line: bytes) -> None:
        """Raises ControlSilentError."""
        route = read_answer(200, line)
        if isinstance(route, Route) and self._catalog.learn(route):
            self._upstreams.prepare(route)
        elif isinstance(route, Asleep):
            self._catalog.expire(route.sandbox_id)
