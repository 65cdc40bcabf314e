"""What was sent of a request, kept while it is little: for a tunnel that ends without an answer."""

from collections.abc import Sequence

from alcove.edge.bodies import Piece
from alcove.edge.heads import RequestHead

IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})
_MAX_BYTES = 64 * 1024
_MAX_TIMES = 3


class Replay:
    """Says whether a request may be sent again, and holds what was sent of its body.

    Once anything was sent, only an idempotent request may go out again: another may have run.
    """

    __slots__ = ("_bytes", "_complete", "_times", "_was_sent", "body")

    def __init__(self, head: RequestHead) -> None:
        self.body: list[Piece] = []
        self._complete = head.method in IDEMPOTENT
        self._bytes = 0
        self._times = 0
        self._was_sent = False

    def sent(self) -> None:
        """The head goes out, and what was remembered of the body after it."""
        self._was_sent = True

    def remember(self, pieces: Sequence[Piece]) -> None:
        """More of the body was sent."""
        if not self._complete:
            return
        self.body += pieces
        self._bytes += sum(map(len, pieces))
        if self._bytes > _MAX_BYTES:
            self._complete = False
            self.body = []

    def again(self) -> bool:
        """Whether to send once more; each True is one of a few."""
        if self._was_sent and not self._complete:
            return False
        self._times += 1
        return self._times <= _MAX_TIMES
