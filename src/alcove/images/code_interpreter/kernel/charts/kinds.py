"""What kind of chart a pair of axes holds, by the artists in it (contract e2b 6.4)."""

import enum
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch, Rectangle, Wedge
from matplotlib.text import Text


class Kind(enum.Enum):
    LINE = "line"
    SCATTER = "scatter"
    BAR = "bar"
    PIE = "pie"
    BOX = "box_and_whisker"
    UNKNOWN = "unknown"


def kind_of(axes: Axes) -> Kind:
    if hasattr(axes, "get_zlim"):
        # Artists in space hold what is projected, not what was given.
        return Kind.UNKNOWN
    artists = [artist for artist in axes.get_children() if _is_drawn_by_user(artist, axes)]
    if _all(artists, Line2D):
        return Kind.LINE
    if _all(artists, (PathPatch, Line2D)):
        return Kind.BOX
    artists = [artist for artist in artists if not is_grid_line(artist)]
    for kind, artist_type in (
        (Kind.SCATTER, PathCollection),
        (Kind.PIE, Wedge),
        (Kind.BAR, Rectangle),
    ):
        if _all(artists, artist_type):
            return kind
    return Kind.UNKNOWN


def is_grid_line(artist: Artist) -> bool:
    """A straight line between two points along an axis: a threshold, an average, a grid."""
    if not isinstance(artist, Line2D):
        return False
    across: Any = artist.get_xdata()
    up: Any = artist.get_ydata()
    if len(across) != 2 or len(up) != 2:
        return False
    return bool(across[0] == across[1] or up[0] == up[1])


def is_reference_line(line: Line2D) -> bool:
    """Drawn by axhline or axvline: one of its coordinates is a part of the axes, not a value."""
    axes = line.axes
    return axes is not None and is_grid_line(line) and line.get_transform() != axes.transData


def _is_drawn_by_user(artist: Artist, axes: Axes) -> bool:
    furniture: set[Artist | None] = {*axes.spines.values(), axes.xaxis, axes.yaxis, axes.patch}
    furniture |= {axes.title, axes.get_legend(), *axes.child_axes}
    return artist not in furniture and not isinstance(artist, Text)


def _all(artists: list[Artist], kind: type[Artist] | tuple[type[Artist], ...]) -> bool:
    return all(isinstance(artist, kind) for artist in artists)
