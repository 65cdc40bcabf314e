"""Bars: standing or lying, grouped or stacked, histograms."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.patches import Rectangle

from .frame import Direction, labelled, least_gap, within_limit

_UNNAMED_GROUP = "_container"


def bar_chart(axes: Axes) -> dict[str, Any]:
    groups = [each for each in axes.containers if isinstance(each, BarContainer) and len(each)]
    within_limit(group.patches for group in groups)
    lying = bool(groups) and all(_is_lying(group) for group in groups)
    names = Direction(axes.yaxis if lying else axes.xaxis)
    values = Direction(axes.xaxis if lying else axes.yaxis)
    elements = [
        {"label": label, "group": _group_name(str(group.get_label())), "value": value}
        for group in groups
        for label, value in _bars(group, names, lying=lying)
    ]
    # The axis of the names is x in the chart, whichever way the bars lie.
    return labelled(names, values) | {"elements": elements}


def _is_lying(group: BarContainer) -> bool:
    """Which way `bar` and `barh` drew it; older containers only show equal heights."""
    if group.orientation is not None:
        return group.orientation == "horizontal"
    heights = {bar.get_height() for bar in group.patches}
    return len(group.patches) > 1 and len(heights) == 1


def _bars(group: BarContainer, names: Direction, *, lying: bool) -> list[tuple[str, float]]:
    read = [_lying(bar) if lying else _standing(bar) for bar in group.patches]
    # Bars of several groups stand beside the tick that they share.
    reach = min(least_gap(centre for centre, _ in read) / 2, names.half_step)
    return [(names.name_of(centre, reach), value) for centre, value in read]


def _standing(bar: Rectangle) -> tuple[float, float]:
    return float(bar.get_x() + bar.get_width() / 2), float(bar.get_height())


def _lying(bar: Rectangle) -> tuple[float, float]:
    return float(bar.get_y() + bar.get_height() / 2), float(bar.get_width())


def _group_name(label: str) -> str:
    number = label.removeprefix(_UNNAMED_GROUP)
    return f"Group {number}" if number != label and number.isdigit() else label
