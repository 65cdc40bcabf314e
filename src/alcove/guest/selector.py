"""The event queue of the agent's loop, which can be made anew.

After a restore an epoll instance of gVisor 20240729 may report an event that nothing can take away
(docs/rfd/0009): the loop would spin for ever. A new instance has only the events that are true, so
one is made after every restore, and whenever the one there is keeps waking the loop for nothing.
"""

import logging
import selectors
import time
from collections.abc import Mapping
from typing import Any

_log = logging.getLogger(__name__)

_Events = list[tuple[selectors.SelectorKey, int]]

_PATIENCE = 32
"""Times in a row that it may wake the loop for nothing: a signal does that, and a restore."""


class RenewableSelector(selectors.BaseSelector):
    """An epoll instance behind the interface that asyncio uses."""

    def __init__(self) -> None:
        self._inner = selectors.EpollSelector()
        self._woken_for_nothing = 0

    def renew(self) -> None:
        """Watch the same files by a new epoll instance."""
        old, self._inner = self._inner, selectors.EpollSelector()
        for key in old.get_map().values():
            self._inner.register(key.fileobj, key.events, key.data)
        old.close()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._inner.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._inner.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._inner.modify(fileobj, events, data)

    def select(self, timeout: float | None = None) -> _Events:
        until = None if timeout is None else time.monotonic() + timeout / 2
        ready = self._inner.select(timeout)
        if ready or timeout == 0 or (until is not None and time.monotonic() >= until):
            self._woken_for_nothing = 0
            return ready
        self._woken_for_nothing += 1
        if self._woken_for_nothing >= _PATIENCE:
            self._woken_for_nothing = 0
            _log.warning("the event queue reports what nobody watches, and is made anew")
            self.renew()
        return ready

    def close(self) -> None:
        self._inner.close()

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self._inner.get_key(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._inner.get_map()
