"""Work that is finished although its caller goes away."""

from collections.abc import Coroutine
from typing import Any, TypeVar

from alcove.concurrency import shielded
from alcove.control.errors import ControlError

_T = TypeVar("_T")


async def to_its_end(work: Coroutine[Any, Any, _T], *, name: str) -> _T:
    """Await `work`, which goes on although the caller is cancelled; pass on what it raises."""

    async def outcome() -> _T | ControlError:
        try:
            return await work
        except ControlError as error:
            # An expected answer, not a failed task for the log.
            return error

    result = await shielded(outcome(), name=name)
    if isinstance(result, ControlError):
        raise result
    return result
