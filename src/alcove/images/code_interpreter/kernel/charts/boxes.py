"""Boxes and whiskers, read from what `boxplot(patch_artist=True)` and seaborn draw.

For each box matplotlib draws a patch from quartile to quartile, two whiskers that begin at it, two
caps, a line for the median, and markers for the outliers (and the mean, inside the whiskers).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch

from .frame import Direction, labelled, within_limit

_NEAR = 1e-9


@dataclass(frozen=True, slots=True)
class _Stroke:
    """A line as if boxes stood upright: `across` their row, `up` along their values."""

    across: list[float]
    up: list[float]
    is_drawn: bool

    @property
    def is_level(self) -> bool:
        return self.is_drawn and len(self.up) == 2 and self.up[0] == self.up[1]

    @property
    def is_upright(self) -> bool:
        return self.is_drawn and len(self.up) == 2 and self.across[0] == self.across[1]

    @property
    def width(self) -> float:
        return max(self.across) - min(self.across)


@dataclass(frozen=True, slots=True)
class _Box:
    left: float
    right: float
    low: float
    high: float

    def holds(self, stroke: _Stroke) -> bool:
        """Whether it stands in the box's column."""
        return bool(stroke.across) and (
            self.left <= min(stroke.across) and max(stroke.across) <= self.right
        )


def box_chart(axes: Axes) -> dict[str, Any]:
    patches = [patch for patch in axes.patches if isinstance(patch, PathPatch)]
    lying = bool(patches) and all(_is_lying(patch) for patch in patches)
    within_limit(line.get_xdata() for line in axes.lines)
    names = Direction(axes.yaxis if lying else axes.xaxis)
    values = Direction(axes.xaxis if lying else axes.yaxis)
    boxes = [_box(patch, lying=lying) for patch in patches]
    strokes = [_stroke(line, lying=lying) for line in axes.lines]
    elements = [
        {"label": names.name_of((box.left + box.right) / 2, names.half_step)}
        | _numbers(box, [stroke for stroke in strokes if box.holds(stroke)])
        for box in boxes
    ]
    return labelled(names, values) | {"elements": elements}


def _is_lying(patch: PathPatch) -> bool:
    """The outline of an upright box begins along its lower quartile."""
    (x0, y0), (x1, y1) = np.asarray(patch.get_path().vertices)[:2]
    return bool(x0 == x1 and y0 != y1)


def _box(patch: PathPatch, *, lying: bool) -> _Box:
    corners = np.asarray(patch.get_path().vertices, dtype=float)
    across, up = corners[:, int(lying)], corners[:, int(not lying)]
    return _Box(float(across.min()), float(across.max()), float(up.min()), float(up.max()))


def _stroke(line: Line2D, *, lying: bool) -> _Stroke:
    x, y = _floats(line.get_xdata(orig=False)), _floats(line.get_ydata(orig=False))
    drawn = line.get_linestyle() not in {"None", "none", "", " "}
    return _Stroke(y, x, drawn) if lying else _Stroke(x, y, drawn)


def _floats(values: Any) -> list[float]:
    return [float(value) for value in values]


def _numbers(box: _Box, strokes: list[_Stroke]) -> dict[str, Any]:
    upright = [stroke for stroke in strokes if stroke.is_upright]
    lower = [min(each.up) for each in upright if _equal(max(each.up), box.low)]
    upper = [max(each.up) for each in upright if _equal(min(each.up), box.high)]
    # A chart drawn twice has every line twice, all alike.
    least, most = min(lower, default=box.low), max(upper, default=box.high)
    levels = [each for each in strokes if each.is_level and box.low <= each.up[0] <= box.high]
    # The caps of whiskers without a length lie on the box, and are narrower than the median.
    median = max(levels, key=lambda each: each.width, default=None)
    marks = {tuple(each.up) for each in strokes if not each.is_drawn}
    return {
        "min": least,
        "first_quartile": box.low,
        "median": None if median is None else median.up[0],
        "third_quartile": box.high,
        "max": most,
        "outliers": [
            mark for points in sorted(marks) for mark in points if mark < least or mark > most
        ],
    }


def _equal(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=_NEAR, abs_tol=0.0)
