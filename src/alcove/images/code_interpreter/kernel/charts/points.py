"""Lines and scattered points."""

from typing import Any

from matplotlib.axes import Axes

from .frame import Direction, labelled, scaled, within_limit
from .kinds import is_reference_line

_UNNAMED_LINE = "_child"


def line_chart(axes: Axes) -> dict[str, Any]:
    x, y = Direction(axes.xaxis), Direction(axes.yaxis)
    lines = [line for line in axes.get_lines() if not is_reference_line(line)]
    within_limit(line.get_xdata() for line in lines)
    elements = [
        {
            "label": _line_name(str(line.get_label())),
            "points": _points(line.get_xdata(), line.get_ydata(), x, y),
        }
        for line in lines
    ]
    return labelled(x, y) | scaled(x, y) | {"elements": elements}


def scatter_chart(axes: Axes) -> dict[str, Any]:
    x, y = Direction(axes.xaxis), Direction(axes.yaxis)
    clouds: list[tuple[Any, Any]] = [(cloud, cloud.get_offsets()) for cloud in axes.collections]
    within_limit(offsets for _, offsets in clouds)
    elements = [
        {"label": str(cloud.get_label()), "points": _points(offsets[:, 0], offsets[:, 1], x, y)}
        for cloud, offsets in clouds
    ]
    return labelled(x, y) | scaled(x, y) | {"elements": elements}


def _line_name(label: str) -> str:
    number = label.removeprefix(_UNNAMED_LINE)
    return f"Line {number}" if number != label and number.isdigit() else label


def _points(across: Any, up: Any, x: Direction, y: Direction) -> list[list[Any]]:
    return [[x.value(left), y.value(right)] for left, right in zip(across, up, strict=False)]
