"""The bench's own limit: whatever hangs, it comes to its end and cleans up."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class TimeIsUpError(KeyboardInterrupt):
    """The time given to the bench is over, or it was told to stop (SIGTERM).

    No Exception, so that series do not count it as a failure of what they measure.
    """


@contextlib.contextmanager
def stops_after(limit_s: float) -> Iterator[None]:
    """Raise TimeIsUpError in the main thread when the time is over or SIGTERM comes."""
    before = {number: signal.signal(number, _stop) for number in (signal.SIGALRM, signal.SIGTERM)}
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, _frame: FrameType | None) -> None:
    raise TimeIsUpError(signal.strsignal(number) or str(number))
