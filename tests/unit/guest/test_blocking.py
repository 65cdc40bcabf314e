import asyncio
import threading

import pytest
from in_loop import in_loop

from alcove.guest.blocking import in_thread


@in_loop
async def test_results_and_errors_come_back():
    assert await in_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await in_thread(divmod, 7, 0)


@in_loop
async def test_a_cancelled_caller_waits_for_its_call():
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def call() -> None:
        begun.set()
        may_end.wait(10)
        ended.set()

    async with asyncio.TaskGroup() as group:
        caller = group.create_task(in_thread(call))
        await asyncio.to_thread(begun.wait, 10)
        for _ in range(2):
            caller.cancel()
            await asyncio.wait([caller], timeout=0.01)
            assert not caller.done()
        may_end.set()
        await asyncio.wait([caller])
        assert caller.cancelled()
        assert ended.is_set()
