"""The event queue of the agent's loop, which can be made anew.

After a restore an epoll instance of gVisor 20240729 may report an event that nothing can take away
(docs/rfd/0005): the loop would spin for ever. Nobody can tell in advance, and a new instance has
only the events that are true.
"""

import selectors
from collections.abc import Mapping
from typing import Any

_Events = list[tuple[selectors.SelectorKey, int]]


class RenewableSelector(selectors.BaseSelector):
    """An epoll instance behind the interface that asyncio uses."""

    def __init__(self) -> None:
        self._inner = selectors.EpollSelector()

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
        return self._inner.select(timeout)

    def close(self) -> None:
        self._inner.close()

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self._inner.get_key(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._inner.get_map()
