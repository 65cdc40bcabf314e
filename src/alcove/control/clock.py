"""Time as control keeps it: microseconds since the epoch, RFC 3339 in UTC on the wire."""

import time
from datetime import UTC, datetime, timedelta

MICROSECONDS = 1_000_000
DAY_US = 24 * 3600 * MICROSECONDS
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FARTHEST = 200_000_000_000 * MICROSECONDS
"""Past the year 8000: nothing we compute reaches it, and datetime still can."""


def now_us() -> int:
    return time.time_ns() // 1000


def from_seconds(at: float) -> int:
    return round(at * MICROSECONDS)


def rfc3339(at_us: int) -> str:
    """Write a moment with all six digits, so that a client can send it back unchanged."""
    moment = _EPOCH + timedelta(microseconds=max(0, min(at_us, _FARTHEST)))
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def parse_rfc3339(text: str) -> int:
    """Read a moment. Raises ValueError, also when the text names no time zone."""
    # A "+" of an offset that a client forgot to percent-encode arrives as a space.
    moment = datetime.fromisoformat(text.replace(" ", "+"))
    if moment.tzinfo is None:
        raise ValueError("no time zone")
    return (moment - _EPOCH) // timedelta(microseconds=1)
