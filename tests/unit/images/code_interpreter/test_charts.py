"""Charts of figures: each kind in the shape of the contract (e2b 6.4), read by the real client."""

import datetime as dt
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import seaborn as sns
from e2b_code_interpreter.charts import (
    BarChart,
    BoxAndWhiskerChart,
    Chart,
    ChartType,
    LineChart,
    PieChart,
    ScaleType,
    ScatterChart,
    SuperChart,
    _deserialize_chart,
)
from kernel_room import KERNEL
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from alcove.images.code_interpreter.kernel.charts import TooManyPointsError, figure_chart
from alcove.images.code_interpreter.kernel.formatters import chart_of

mpl.use("agg")

TWO_DIMENSIONAL = {"type", "title", "elements", "x_label", "y_label", "x_unit", "y_unit"}
SCALED = {"x_ticks", "x_tick_labels", "x_scale", "y_ticks", "y_tick_labels", "y_scale"}


@pytest.fixture(autouse=True)
def _figures_end_with_their_test() -> Iterator[None]:
    yield
    plt.close("all")


def chart(of: Figure | None = None) -> Any:
    """Of the current figure, as the client hands it to its user."""
    return _deserialize_chart(figure_chart(of or plt.gcf()))


def values(read: Any) -> list[tuple[str, str, float]]:
    return [(bar.group, bar.label, bar.value) for bar in read.elements]


# --- lines


def test_line() -> None:
    plt.plot([1, 2, 3], [2.5, 4, 9], label="speed")
    plt.plot([1, 2], [0, 1])
    plt.xlabel("Time (s)")
    plt.ylabel("Speed [km/h]")
    plt.title("Race")
    raw = figure_chart(plt.gcf())
    assert raw.keys() == TWO_DIMENSIONAL | SCALED
    read = chart()
    assert isinstance(read, LineChart)
    assert (read.type, read.title) == (ChartType.LINE, "Race")
    assert (read.x_label, read.x_unit) == ("Time (s)", "s")
    assert (read.y_label, read.y_unit) == ("Speed [km/h]", "km/h")
    assert (read.x_scale, read.y_scale) == (ScaleType.LINEAR, ScaleType.LINEAR)
    assert [line.label for line in read.elements] == ["speed", "Line 1"]
    assert read.elements[0].points == [(1.0, 2.5), (2.0, 4.0), (3.0, 9.0)]
    assert all(isinstance(tick, float) for tick in read.x_ticks + read.y_ticks)
    assert len(read.x_ticks) == len(read.x_tick_labels)


def test_what_is_not_there_is_null() -> None:
    plt.plot([0, 10], [5, 5])
    raw = figure_chart(plt.gcf())
    empty = ["title", "x_label", "y_label", "x_unit", "y_unit"]
    assert [raw[key] for key in empty] == [None] * 5
    # Level, but a line of the user's all the same.
    assert raw["elements"][0]["points"] == [[0.0, 5.0], [10.0, 5.0]]


@pytest.mark.parametrize(
    ("label", "unit"),
    [("Time (s)", "s"), ("f(x)", None), ("Mass [kg]", "kg"), ("", None), ("a () b", None)],
)
def test_units(label: str, unit: str | None) -> None:
    plt.plot([1])
    plt.xlabel(label)
    assert chart().x_unit == unit


def test_gaps_are_null() -> None:
    plt.plot([1, 2, 3, 4], [1, math.nan, np.inf, 4])
    plt.plot(np.ma.masked_greater([1, 2, 3], 2), [1, 2, 3])
    lines = chart().elements
    assert lines[0].points == [(1.0, 1.0), (2.0, None), (3.0, None), (4.0, 4.0)]
    assert lines[1].points[2] == (None, 3.0)


def test_settings_of_matplotlib() -> None:
    read = mpl.rc_params_from_file(KERNEL / "config/matplotlibrc", use_default_template=False)
    assert read == {"font.family": ["sans-serif", "Noto Sans CJK JP"]}


def test_thresholds_are_no_lines() -> None:
    plt.plot([1, 2], [3, 4])
    plt.axhline(3.5)
    plt.axvline(1.5, color="red")
    assert [line.points for line in chart().elements] == [[(1.0, 3.0), (2.0, 4.0)]]


# --- scales


@pytest.mark.parametrize("name", ["log", "symlog", "logit", "asinh"])
def test_scales_of_matplotlib(name: str) -> None:
    plt.plot([0.1, 0.5, 0.9], [1, 2, 3])
    plt.xscale(name)
    assert chart().x_scale == ScaleType(name)


def days(count: int) -> list[dt.date]:
    return [dt.date(2024, 2, 27) + dt.timedelta(days=day) for day in range(count)]


@pytest.mark.parametrize(
    ("convert", "first"),
    [
        (lambda day: day, "2024-02-27"),
        (np.datetime64, "2024-02-27T00:00:00"),
        (pd.Timestamp, "2024-02-27T00:00:00"),
        (lambda day: dt.datetime.combine(day, dt.time(5)), "2024-02-27T05:00:00"),
    ],
)
def test_dates(convert: Callable[[dt.date], Any], first: str) -> None:
    plt.plot([convert(day) for day in days(5)], range(5))
    read = chart()
    assert (read.x_scale, read.y_scale) == (ScaleType.DATETIME, ScaleType.LINEAR)
    assert read.elements[0].points[0] == (first, 0.0)
    assert dt.datetime.fromisoformat(read.x_ticks[0]).tzinfo is not None


def test_scattered_dates() -> None:
    plt.scatter(days(3), [1, 2, 3])
    read = chart()
    assert read.x_scale == ScaleType.DATETIME
    assert read.elements[0].points[1] == ("2024-02-28T00:00:00", 2.0)


@pytest.mark.parametrize("frequency", ["D", "MS", "h"])
def test_time_series_of_pandas(frequency: str) -> None:
    index = pd.date_range("2024-01-01", periods=30, freq=frequency)
    pd.DataFrame({"sold": range(30)}, index=index).plot()
    read = chart()
    assert read.x_scale == ScaleType.DATETIME
    (line,) = read.elements
    assert line.label == "sold"
    assert line.points[2] == (index[2].isoformat(), 2.0)
    assert dt.datetime.fromisoformat(read.x_ticks[0])


def test_irregular_time_series_of_pandas() -> None:
    index = pd.to_datetime(["2024-01-01", "2024-01-05", "2024-03-01"])
    pd.Series([1, 2, 3], index=index).plot()
    read = chart()
    assert read.x_scale == ScaleType.DATETIME
    assert read.elements[0].points[1] == ("2024-01-05T00:00:00", 2.0)


def test_names_on_an_axis() -> None:
    plt.plot([1, 2, 3, 4, 5], list("ABCDE"))
    read = chart()
    assert (read.x_scale, read.y_scale) == (ScaleType.LINEAR, ScaleType.CATEGORICAL)
    assert read.y_tick_labels == list("ABCDE")
    assert read.elements[0].points[0] == (1.0, "A")
    plt.figure()
    plt.scatter(["x", "y"], [1, 2])
    assert chart().elements[0].points == [("x", 1.0), ("y", 2.0)]


def test_counting_ticks_are_no_names() -> None:
    plt.plot([0, 1, 2], [0, 1, 2])
    plt.xticks([0, 1, 2])
    plt.yticks([0, 1, 2], ["low", "middle", "high"])
    assert (chart().x_scale, chart().y_scale) == (ScaleType.LINEAR, ScaleType.CATEGORICAL)


# --- scattered points


def test_scatter() -> None:
    plt.scatter([1, 2], [3, 4], label="first")
    plt.scatter(np.array([5]), np.array([6]), label="second")
    plt.axhline(4)
    plt.legend()
    assert figure_chart(plt.gcf()).keys() == TWO_DIMENSIONAL | SCALED
    read = chart()
    assert isinstance(read, ScatterChart)
    assert [(each.label, each.points) for each in read.elements] == [
        ("first", [(1.0, 3.0), (2.0, 4.0)]),
        ("second", [(5.0, 6.0)]),
    ]


# --- bars


def test_bars() -> None:
    plt.bar(["A", "B", "C"], [1, 2.5, 3], label="sold")
    plt.xlabel("Author")
    plt.ylabel("Books (thousand)")
    assert figure_chart(plt.gcf()).keys() == TWO_DIMENSIONAL
    read = chart()
    assert isinstance(read, BarChart)
    assert values(read) == [("sold", "A", 1.0), ("sold", "B", 2.5), ("sold", "C", 3.0)]
    assert (read.x_label, read.y_unit) == ("Author", "thousand")


def test_lying_bars() -> None:
    plt.barh(["A", "B"], [1, 2])
    plt.xlabel("Books (thousand)")
    plt.ylabel("Author")
    read = chart()
    assert values(read) == [("Group 0", "A", 1.0), ("Group 0", "B", 2.0)]
    assert (read.x_label, read.y_label) == ("Author", "Books (thousand)")
    assert (read.x_unit, read.y_unit) == (None, "thousand")


def test_equal_bars_stand() -> None:
    plt.bar(["A", "B"], [5, 5])
    assert values(chart()) == [("Group 0", "A", 5.0), ("Group 0", "B", 5.0)]


def test_groups_of_bars() -> None:
    places = np.arange(3)
    plt.bar(places - 0.2, [1, 2, 3], 0.4, label="2023")
    plt.bar(places + 0.2, [4, 5, 6], 0.4, label="2024")
    plt.xticks(places, ["A", "B", "C"])
    assert values(chart()) == [
        *zip(["2023"] * 3, "ABC", [1.0, 2.0, 3.0], strict=True),
        *zip(["2024"] * 3, "ABC", [4.0, 5.0, 6.0], strict=True),
    ]


def test_stacked_bars_have_their_own_heights() -> None:
    plt.bar(["A", "B"], [1, 2], label="low")
    plt.bar(["A", "B"], [3, 4], bottom=[1, 2], label="high")
    assert values(chart())[2:] == [("high", "A", 3.0), ("high", "B", 4.0)]


@pytest.mark.parametrize("kind", ["bar", "barh"])
def test_bars_of_pandas(kind: str) -> None:
    frame = pd.DataFrame({"cars": [1, 2], "bikes": [3, 4]}, index=["Rome", "Oslo"])
    frame.plot(kind=kind)
    assert values(chart()) == [
        ("cars", "Rome", 1.0),
        ("cars", "Oslo", 2.0),
        ("bikes", "Rome", 3.0),
        ("bikes", "Oslo", 4.0),
    ]


def test_bars_of_seaborn() -> None:
    frame = pd.DataFrame({"city": ["Rome", "Oslo"], "cars": [1, 2]})
    sns.barplot(frame, x="city", y="cars")
    assert [each[1:] for each in values(chart())] == [("Rome", 1.0), ("Oslo", 2.0)]


@pytest.mark.parametrize("years", [[2019, 2020, 2021], [2000, 2003, 2019]])
def test_bars_at_numbers(years: list[int]) -> None:
    plt.bar(years, [1, 2, 3])
    assert [label for _, label, _ in values(chart())] == [str(year) for year in years]


def test_bars_at_dates() -> None:
    plt.bar(days(2), [1, 2])  # type: ignore[arg-type]  # dates are units to matplotlib
    assert [label for _, label, _ in values(chart())] == ["2024-02-27", "2024-02-28"]


def test_histogram() -> None:
    plt.hist([1, 1, 2, 3, 3, 3], bins=[0.5, 1.5, 2.5, 3.5])
    assert values(chart()) == [("Group 0", "1", 2.0), ("Group 0", "2", 1.0), ("Group 0", "3", 3.0)]


def test_bars_with_a_threshold() -> None:
    plt.bar(["A", "B"], [1, 2])
    plt.axhline(1.5)
    plt.grid(visible=True)
    assert isinstance(chart(), BarChart)


# --- pies


def test_pie() -> None:
    plt.pie([90, 10], labels=["No", "No, in blue"], autopct="%1.1f%%", startangle=90)
    plt.title("Will I wake up early tomorrow?")
    assert figure_chart(plt.gcf()).keys() == {"type", "title", "elements"}
    read = chart()
    assert isinstance(read, PieChart)
    assert [(part.label, part.angle, part.radius) for part in read.elements] == [
        ("No", 324, 1),
        ("No, in blue", 36, 1),
    ]


# --- boxes

SCORES = {"A": [85, 90, 78, 92, 88], "B": [95, 89, 76, 91, 84, 87], "C": [75, 82, 88, 79, 86]}


def boxes(read: Any) -> list[tuple[Any, ...]]:
    return [
        (each.label, each.min, each.first_quartile, each.median, each.third_quartile, each.max)
        for each in read.elements
    ]


EXPECTED = [
    ("A", 78, 85, 88, 90, 92),
    ("B", 84, 84.75, 88, 90.5, 95),
    ("C", 75, 79, 82, 86, 88),
]


@pytest.mark.parametrize("orientation", ["vertical", "horizontal"])
@pytest.mark.parametrize("means", [True, False])
def test_boxes(orientation: Literal["vertical", "horizontal"], means: bool) -> None:
    plt.boxplot(
        list(SCORES.values()),
        tick_labels=list(SCORES),
        patch_artist=True,
        orientation=orientation,
        showmeans=means,
        meanline=means,
    )
    name = plt.xlabel if orientation == "vertical" else plt.ylabel
    name("Class")
    assert figure_chart(plt.gcf()).keys() == TWO_DIMENSIONAL
    read = chart()
    assert isinstance(read, BoxAndWhiskerChart)
    assert read.x_label == "Class"
    assert boxes(read) == EXPECTED
    assert [each.outliers for each in read.elements] == [[], [76], []]


def test_one_box_and_many_outliers() -> None:
    plt.boxplot([[*range(20), 100, 101, 101, -50]], patch_artist=True, tick_labels=["only"])
    (box,) = chart().elements
    assert (box.label, box.min, box.max) == ("only", 0, 19)
    assert sorted(box.outliers) == [-50, 100, 101, 101]


def test_a_box_of_equal_values() -> None:
    plt.boxplot([[3, 3, 3]], patch_artist=True, tick_labels=["flat"])
    assert boxes(chart()) == [("flat", 3, 3, 3, 3, 3)]


def test_boxes_of_seaborn() -> None:
    rows = [(name, score) for name, scores in SCORES.items() for score in scores]
    sns.boxplot(pd.DataFrame(rows, columns=["class", "score"]), x="class", y="score")
    assert boxes(chart()) == EXPECTED


# --- several, other, none


def test_several_axes() -> None:
    figure, (left, right) = plt.subplots(1, 2)
    figure.suptitle("Both")
    left.plot([1, 2], [3, 4])
    left.set_title("Lines")
    right.scatter([1], [2])
    right.grid(visible=True)
    read = chart()
    assert isinstance(read, SuperChart)
    assert (read.type, read.title) == (ChartType.SUPERCHART, "Both")
    assert [type(each) for each in read.elements] == [LineChart, ScatterChart]
    assert read.elements[0].title == "Lines"
    assert read.elements[0].x_label is None


def circles() -> None:
    axes = plt.gca()
    axes.add_artist(plt.Circle((0, 0), 1))
    axes.grid(visible=True)


@pytest.mark.parametrize(
    "draw",
    [
        circles,
        lambda: plt.imshow(np.eye(3)),
        lambda: plt.fill_between([1, 2], [3, 4]),
        lambda: plt.subplot(projection="3d").plot([1, 2], [1, 2], [1, 2]),
    ],
)
def test_unknown_kinds(draw: Callable[[], Any]) -> None:
    draw()
    plt.title("Something")
    read = chart()
    assert type(read) is Chart
    assert (read.type, read.title, read.elements) == (ChartType.UNKNOWN, "Something", [])


def test_nothing_is_shown() -> None:
    plt.subplots()
    assert figure_chart(plt.gcf()) == {}
    assert figure_chart(Figure()) == {}


def test_too_many_points() -> None:
    plt.plot(np.zeros(300_000))
    plt.plot(np.zeros(300_000))
    with pytest.raises(TooManyPointsError, match="600000"):
        figure_chart(plt.gcf())
    assert chart_of(plt.gcf()) == {}


def test_a_figure_of_an_unforeseen_kind_has_no_chart() -> None:
    class Odd:
        def get_axes(self) -> None:
            raise RuntimeError("odd")

    assert chart_of(Odd()) == {}


def test_reading_a_figure_does_not_change_it() -> None:
    figure, axes = plt.subplots()
    axes.bar(["A", "B"], [1, 2])
    before = figure.canvas.print_to_buffer()  # type: ignore[attr-defined]  # agg's canvas
    figure_chart(figure)
    assert figure.canvas.print_to_buffer() == before  # type: ignore[attr-defined]
