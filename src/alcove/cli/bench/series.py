"""Series of measured values and what is said of them."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


class WrongAnswerError(Exception):
    """The thing that was timed did not give the answer it should; its time counts for nothing."""


@dataclass(slots=True)
class Series:
    """Values of one measurement, in `unit`; failures are counted, never averaged in."""

    name: str
    unit: str
    values: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    note: str = ""

    def extend(self, other: "Series") -> None:
        """Take in what another series measured of the same."""
        self.values += other.values
        self.failures += other.failures

    def percentile(self, share: float) -> float:
        """Nearest-rank percentile; `share` from 0 to 1."""
        ordered = sorted(self.values)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    def to_json(self) -> dict[str, Any]:
        tried = len(self.values) + len(self.failures)
        row: dict[str, Any] = {
            "name": self.name,
            "unit": self.unit,
            "n": len(self.values),
            "success": round(len(self.values) / tried, 4) if tried else 0.0,
        }
        if self.values:
            row |= {
                "min": round(min(self.values), 3),
                "p50": round(self.percentile(0.50), 3),
                "p95": round(self.percentile(0.95), 3),
                "p99": round(self.percentile(0.99), 3),
                "max": round(max(self.values), 3),
            }
        if self.failures:
            row["first_failure"] = self.failures[0]
        if self.note:
            row["note"] = self.note
        return row


@contextmanager
def milliseconds(series: Series) -> Iterator[None]:
    """Time the block into `series`; an exception makes it a failure instead."""
    started = time.perf_counter()
    try:
        yield
    except Exception as error:
        series.failures.append(f"{type(error).__name__}: {error}"[:300])
    else:
        series.values.append((time.perf_counter() - started) * 1000)


@contextmanager
def verified(series: Series) -> Iterator[None]:
    """Untimed checks of what was timed last: an exception takes its value back."""
    try:
        yield
    except Exception as error:
        if series.values:
            series.values.pop()
        series.failures.append(f"{type(error).__name__}: {error}"[:300])


def expect(what: str, got: object, wanted: object) -> None:
    """Raise WrongAnswerError unless `got` is what was wanted."""
    if got != wanted:
        raise WrongAnswerError(f"{what}: got {got!r:.200}, wanted {wanted!r:.200}")
