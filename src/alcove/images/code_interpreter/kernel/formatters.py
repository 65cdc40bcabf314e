"""The formats a result has beyond Jupyter's own: e2b/chart, e2b/data and JSON of plain values.

Contract e2b 6.2 and 6.4. IPython asks every formatter about every displayed object, so nothing is
imported before an object of that library is there.
"""

import sys
from typing import Any

from IPython.core.formatters import BaseFormatter, JSONFormatter
from traitlets import ObjectName, Unicode

from . import plain

# A result is for a reader or a plot; whole data sets travel as files.
MAX_CELLS = 1_000_000

# pandas 3 gives its classes another home.
_FRAMES = [("pandas.core.frame", "DataFrame"), ("pandas", "DataFrame")]


class ChartFormatter(BaseFormatter):
    format_type = Unicode("e2b/chart")
    print_method = ObjectName("_repr_e2b_chart_")
    _return_type = (dict, str)

    def lookup(self, obj: Any) -> Any:
        """By the class itself: whoever chooses image formats for figures takes all others away."""
        module = sys.modules.get("matplotlib.figure")
        if module is not None and isinstance(obj, module.Figure):
            return chart_of
        return super().lookup(obj)  # type: ignore[no-untyped-call]  # IPython has no types here


class DataFormatter(BaseFormatter):
    format_type = Unicode("e2b/data")
    print_method = ObjectName("_repr_e2b_data_")
    _return_type = (dict, str)


def register(shell: Any) -> None:
    display = shell.display_formatter
    charts: Any = ChartFormatter(parent=display)
    data: Any = DataFormatter(parent=display)
    for module, name in _FRAMES:
        data.for_type_by_name(module, name, data_of)
    json: Any = JSONFormatter(parent=display)
    for kind in (list, dict):
        json.for_type(kind, json_of)
    for formatter in (charts, data, json):
        display.formatters[formatter.format_type] = formatter


def chart_of(figure: Any) -> dict[str, Any]:
    """The data of a matplotlib figure; {} where it cannot be read."""
    try:
        from .charts import figure_chart

        return figure_chart(figure)
    except Exception:
        return {}


def data_of(frame: Any) -> dict[str, list[Any]] | None:
    """A DataFrame by columns, names as text; None where it is too large."""
    if frame.size > MAX_CELLS:
        return None
    try:
        # Column by column: names may repeat, and the last one of a name counts.
        columns = {
            str(name): frame.iloc[:, place].tolist() for place, name in enumerate(frame.columns)
        }
        made: dict[str, list[Any]] = plain.lenient(columns)
    except Exception:
        return None
    return made


def json_of(value: Any) -> tuple[Any, dict[str, bool]] | None:
    """A list or dict with everything in it; None where JSON cannot say it all."""
    try:
        return plain.strict(value), {"expanded": True}
    except Exception:
        # Values run code of their own when they are looked at.
        return None
