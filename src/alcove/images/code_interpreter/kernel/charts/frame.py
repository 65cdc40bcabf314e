"""What charts have around their data: titles, labels with units, scales, ticks."""

import datetime as dt
import itertools
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib.dates
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.category import StrCategoryConverter, StrCategoryLocator
from matplotlib.ticker import FixedLocator

Plain = str | float | None

# A client draws it again: more points than pixels of a wall help nobody.
MAX_POINTS = 500_000

_UNIT = re.compile(r"\s\((.*?)\)|\[(.*?)\]")
_DATES = (matplotlib.dates.DateConverter, matplotlib.dates._SwitchableDateConverter)  # noqa: SLF001 (the one that matplotlib registers)


class TooManyPointsError(ValueError):
    """The figure has more points than a result should carry."""


class _Words:
    """How one kind of axis calls its numbers; here as numbers."""

    scale: str | None = None

    def tick(self, number: float) -> Plain:
        return number

    def value(self, number: float) -> Plain:
        return self.tick(number)


class Direction:
    """One axis of a chart: its words, and how its numbers are read."""

    def __init__(self, axis: Axis) -> None:
        self.label = axis.get_label_text() or None
        self.unit = unit_of(self.label)
        self._words = _words_of(axis)
        # Labels first: asking for them makes the ticks what they are in the picture.
        self.tick_labels = [text.get_text() for text in axis.get_ticklabels()]
        self.positions = [float(tick) for tick in axis.get_ticklocs()]
        self.ticks = [self._words.tick(position) for position in self.positions]
        self.scale = self._words.scale or scale_of(
            axis.get_scale(), self.positions, self.tick_labels
        )
        # Other locators put ticks where numbers are round, and not where something stands.
        self._named = (
            [tick for tick in zip(self.positions, self.tick_labels, strict=False) if tick[1]]
            if isinstance(axis.get_major_locator(), (FixedLocator, StrCategoryLocator))
            else []
        )

    def value(self, raw: Any) -> Plain:
        """A coordinate as it was given or as matplotlib keeps it: a number, a text or null."""
        if raw is np.ma.masked or raw is None:
            return None
        if isinstance(raw, (str, bytes)):
            return str(raw)
        moment = moment_text(raw)
        if moment is not None:
            return moment
        return self._words.value(float(raw))

    def name_of(self, number: float, reach: float) -> str:
        """What a reader calls that place: the tick with a name within `reach`, or the number."""
        near = min(self._named, key=lambda tick: abs(tick[0] - number), default=None)
        if near is not None and abs(near[0] - number) <= reach:
            return near[1]
        words = self._words.value(number)
        return words.removesuffix("T00:00:00") if isinstance(words, str) else f"{number:.10g}"

    @property
    def half_step(self) -> float:
        """Half the way from a tick to the next."""
        return least_gap(self.positions) / 2


def titled(axes: Axes, kind: str) -> dict[str, Any]:
    return {"type": kind, "title": axes.get_title() or None}


def labelled(x: Direction, y: Direction) -> dict[str, Any]:
    return {"x_label": x.label, "y_label": y.label, "x_unit": x.unit, "y_unit": y.unit}


def scaled(x: Direction, y: Direction) -> dict[str, Any]:
    return {
        "x_ticks": x.ticks,
        "x_tick_labels": x.tick_labels,
        "x_scale": x.scale,
        "y_ticks": y.ticks,
        "y_tick_labels": y.tick_labels,
        "y_scale": y.scale,
    }


def unit_of(label: str | None) -> str | None:
    """`s` of "Time (s)" or "Time [s]"."""
    found = _UNIT.search(label or "")
    return (found.group(1) or found.group(2) or None) if found else None


def scale_of(scale: str, ticks: Sequence[float], labels: Sequence[str]) -> str:
    """The word of matplotlib, or `categorical` where the ticks only count names."""
    if scale != "linear":
        return scale
    counting = [
        tick == place and label not in {"", str(place)}
        for place, (tick, label) in enumerate(zip(ticks, labels, strict=False))
    ]
    return "categorical" if counting and all(counting) else "linear"


def moment_text(raw: Any) -> str | None:
    """Dates of the standard library, numpy and pandas in ISO 8601; None for anything else."""
    if isinstance(raw, np.datetime64):
        return None if np.isnat(raw) else str(raw.astype("datetime64[s]"))
    if hasattr(raw, "to_timestamp"):  # a pandas Period
        return str(raw.to_timestamp().isoformat())
    if isinstance(raw, (dt.date, dt.datetime)):
        return raw.isoformat()
    return None


def least_gap(places: Iterable[float]) -> float:
    """The smallest distance between two different places; 1 where there are no two."""
    ordered = sorted(set(places))
    return min((right - left for left, right in itertools.pairwise(ordered)), default=1.0)


def within_limit(coordinates: Iterable[Any]) -> None:
    """Raises TooManyPointsError before anything large is made."""
    count = sum(len(each) for each in coordinates)
    if count > MAX_POINTS:
        raise TooManyPointsError(f"{count} points, {MAX_POINTS} are the limit")


class _Dates(_Words):
    scale: str | None = "datetime"

    def tick(self, number: float) -> Plain:
        return str(matplotlib.dates.num2date(number).isoformat())

    def value(self, number: float) -> Plain:
        if not np.isfinite(number):
            return None
        return str(matplotlib.dates.num2date(number).replace(tzinfo=None).isoformat())


class _Periods(_Words):
    """pandas draws regular time series by counting their periods."""

    scale: str | None = "datetime"

    def __init__(self, frequency: Any) -> None:
        self._frequency = frequency

    def tick(self, number: float) -> Plain:
        period = sys.modules["pandas"].Period(ordinal=int(number), freq=self._frequency)
        return str(period.to_timestamp().isoformat())


class _Names(_Words):
    def __init__(self, names: dict[float, str]) -> None:
        self._names = names

    def value(self, number: float) -> Plain:
        return self._names.get(number, number)


def _words_of(axis: Axis) -> _Words:
    # The attribute is deprecated since matplotlib 3.10, the method is new in it.
    converter = axis.get_converter() if hasattr(axis, "get_converter") else axis.converter
    if isinstance(converter, _DATES):
        return _Dates()
    if type(converter).__name__ == "PeriodConverter":
        return _Periods(axis.freq)  # type: ignore[attr-defined]  # pandas keeps it there
    if isinstance(converter, StrCategoryConverter) and axis.units is not None:
        return _Names({float(place): name for name, place in axis.units._mapping.items()})  # noqa: SLF001 (no public way back from places)
    return _Words()
