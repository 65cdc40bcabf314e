"""Bounds what a kernel holds back of its output: ipykernel gathers all that is written in 0.2 s.

Of a flood that is one message, larger than the server reads, and in memory several times.
"""

import sys
from typing import Any

MOST_HELD = 1 << 20
"""Characters that are written before they are sent, and of one message."""


def register(_shell: Any) -> None:
    for stream in (sys.stdout, sys.stderr):
        # Only the streams of a kernel gather: in a terminal there is nothing to bound.
        if hasattr(stream, "flush_interval"):
            _bound(stream)


def _bound(stream: Any) -> None:
    write, held = stream.write, 0

    def bounded(text: str) -> int:
        nonlocal held
        if not isinstance(text, str):
            return int(write(text))  # which says what is wrong with it
        for start in range(0, len(text), MOST_HELD):
            piece = text[start : start + MOST_HELD]
            write(piece)
            held += len(piece)
            if held >= MOST_HELD:
                held = 0
                stream.flush()
        return len(text)

    stream.write = bounded
