"""The data that a matplotlib figure shows, for clients that draw it themselves.

Contract e2b 6.4: the kind of every chart, its keys and what is null.
"""

from typing import TYPE_CHECKING, Any

from .. import plain
from .bars import bar_chart
from .boxes import box_chart
from .frame import TooManyPointsError, titled
from .kinds import Kind, kind_of
from .pies import pie_chart
from .points import line_chart, scatter_chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["TooManyPointsError", "figure_chart"]

_READERS = {
    Kind.LINE: line_chart,
    Kind.SCATTER: scatter_chart,
    Kind.BAR: bar_chart,
    Kind.PIE: pie_chart,
    Kind.BOX: box_chart,
}


def figure_chart(figure: "Figure") -> dict[str, Any]:
    """One chart, a superchart of several, or {} for a figure that shows nothing.

    Raises whatever a figure of an unforeseen kind makes it raise.
    """
    axes = figure.get_axes()
    if not any(each.has_data() for each in axes):
        return {}
    if len(axes) == 1:
        chart = _chart(axes[0])
    else:
        chart = {
            "type": "superchart",
            "title": figure.get_suptitle() or None,
            "elements": [_chart(each) for each in axes],
        }
    made: dict[str, Any] = plain.strict(chart)
    return made


def _chart(axes: "Axes") -> dict[str, Any]:
    kind = kind_of(axes)
    reader = _READERS.get(kind)
    chart = titled(axes, kind.value) | {"elements": []}
    return chart if reader is None else chart | reader(axes)
