"""The connections from the edge into one sandbox: bounded in number, cut when it stops."""

from collections.abc import Callable


class Tunnels:
    """Callables that cut one connection each."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: set[Callable[[], None]] = set()

    def admit(self, cut: Callable[[], None]) -> bool:
        """Count one more; False when there are too many."""
        if len(self._open) >= self._limit:
            return False
        self._open.add(cut)
        return True

    def closed(self, cut: Callable[[], None]) -> None:
        self._open.discard(cut)

    def cut(self) -> None:
        """Cut all: what is in flight must fail now, not time out later."""
        tunnels, self._open = self._open, set()
        for cut in tunnels:
            cut()

    def __len__(self) -> int:
        return len(self._open)
