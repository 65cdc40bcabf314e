"""Values of any kind as what JSON can say.

NaN and infinities become null: JSON has no word for them, and clients draw null as a gap.
"""

import dataclasses
import datetime as dt
import enum
import json
import uuid
from collections.abc import Callable
from typing import Any

_MAX_ITEMS = 10_000_000


def strict(value: Any) -> Any:
    """`value` with numpy, dates, UUIDs, enums and dataclasses made plain.

    Raises TypeError or ValueError for what has no faithful JSON.
    """
    return _round_trip(value, _known)


def lenient(value: Any) -> Any:
    """The same, and its text in place of what JSON cannot say."""
    return _round_trip(value, _any)


def _round_trip(value: Any, default: Callable[[Any], Any]) -> Any:
    """Through the C encoder: tens of times faster than a walk in Python."""
    return json.loads(json.dumps(value, default=default), parse_constant=lambda _: None)


def _known(value: Any) -> Any:
    if _is_missing(value):
        return None
    if isinstance(value, (dt.datetime, dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return _from_numpy(value)


def _from_numpy(value: Any) -> Any:
    """Arrays and scalars, known by what they can do: numpy may not be loaded here."""
    if type(value).__module__.partition(".")[0] != "numpy" or not hasattr(value, "tolist"):
        raise TypeError(f"{type(value).__name__} has no JSON form")
    if value.size > _MAX_ITEMS:
        raise ValueError("too large to be shown as JSON")
    if value.dtype.kind == "M":
        return value.astype("datetime64[us]").astype(str).tolist()
    if value.dtype.kind not in "biufUO":
        raise TypeError(f"numbers of type {value.dtype} have no JSON form")
    return value.tolist()


def _any(value: Any) -> Any:
    try:
        return _known(value)
    except (TypeError, ValueError):
        return float(value) if hasattr(value, "__float__") else str(value)


def _is_missing(value: Any) -> bool:
    """NaT and NA of pandas: neither equals itself, and NaT is a datetime."""
    return type(value).__name__ in {"NaTType", "NAType"}
