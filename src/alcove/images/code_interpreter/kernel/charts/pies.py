"""Pies and rings."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Wedge

# matplotlib adds up the parts in single precision: 324 comes out as 323.99999.
_DECIMALS = 3


def pie_chart(axes: Axes) -> dict[str, Any]:
    wedges = [patch for patch in axes.patches if isinstance(patch, Wedge)]
    return {
        "elements": [
            {
                "label": str(wedge.get_label()),
                "angle": _angle(wedge),
                "radius": float(wedge.r),
            }
            for wedge in wedges
        ]
    }


def _angle(wedge: Wedge) -> float:
    """In degrees."""
    angle = abs(float(wedge.theta2) - float(wedge.theta1))
    return round(angle, _DECIMALS) or angle
