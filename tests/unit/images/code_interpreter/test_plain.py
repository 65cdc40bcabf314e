"""Values of results as JSON: faithful, or not at all."""

import dataclasses
import datetime as dt
import enum
import json
import math
import uuid
from collections import Counter, OrderedDict, defaultdict
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.images.code_interpreter.kernel import plain
from alcove.images.code_interpreter.kernel.formatters import data_of, json_of

ID = uuid.UUID(int=5)


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    where: Colour


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([1, 2.5, "a", None, True], [1, 2.5, "a", None, True]),
        ([np.int64(1), np.float32(0.5), np.bool_(1), np.str_("a")], [1, 0.5, True, "a"]),
        (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        (
            {"a": np.array(["x"]), "b": np.array([1, None], dtype=object)},
            {"a": ["x"], "b": [1, None]},
        ),
        ([math.nan, math.inf, -math.inf, np.nan, pd.NA, pd.NaT], [None] * 6),
        (
            {1: "a", None: "b", False: "c", 2.5: "d"},
            {"1": "a", "null": "b", "false": "c", "2.5": "d"},
        ),
        ([dt.date(2024, 1, 2), pd.Timestamp(2024, 1, 2)], ["2024-01-02", "2024-01-02T00:00:00"]),
        ([np.datetime64("2024-01-02")], ["2024-01-02T00:00:00.000000"]),
        ([ID, Colour.RED, Point(1, Colour.RED)], [str(ID), "red", {"x": 1, "where": "red"}]),
        ((1, (2, 3)), [1, [2, 3]]),
        (defaultdict(list, a=[1]), {"a": [1]}),
        (OrderedDict(b=1), {"b": 1}),
        (Counter("aab"), {"a": 2, "b": 1}),
        (2**80, 2**80),
    ],
)
def test_faithful(value: Any, said: Any) -> None:
    assert plain.strict(value) == said


def test_what_json_cannot_say() -> None:
    loop: list[Any] = []
    loop.append(loop)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in ({(1, 2): 3}, [object()], [{1, 2}], [b"x"], [Decimal(1)], loop, deep, [1j]):
        assert json_of(value) is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    )
)
def test_any_json_stays_itself(value: Any) -> None:
    said = plain.strict(value)
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    without_gaps = json.dumps(value)
    if "NaN" not in without_gaps and "Infinity" not in without_gaps:
        assert said == value


def test_tables_by_columns() -> None:
    frame = pd.DataFrame(
        {
            "n": [1, 2],
            "x": [0.5, np.nan],
            "when": pd.to_datetime(["2024-01-02", None]),
            "kind": pd.Categorical(["a", "b"]),
            "maybe": pd.array([1, None], dtype="Int64"),
            "length": pd.to_timedelta(["1D", None]),
            "odd": [Decimal("1.5"), {1, 2}],
            7: [b"x", [1]],
        }
    )
    assert data_of(frame) == {
        "n": [1, 2],
        "x": [0.5, None],
        "when": ["2024-01-02T00:00:00", None],
        "kind": ["a", "b"],
        "maybe": [1, None],
        "length": ["1 days 00:00:00", None],
        "odd": [1.5, "{1, 2}"],
        "7": ["b'x'", [1]],
    }


def test_tables_with_columns_of_any_kind() -> None:
    twice = pd.DataFrame([[1, 2]], columns=["a", "a"])
    assert data_of(twice) == {"a": [2]}
    levels = pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", "x"), ("a", "y")]))
    assert data_of(levels) == {"('a', 'x')": [1], "('a', 'y')": [2]}
    assert data_of(pd.DataFrame()) == {}


def test_a_table_that_is_too_large() -> None:
    assert data_of(pd.DataFrame(np.zeros((1_000_001, 1)))) is None
