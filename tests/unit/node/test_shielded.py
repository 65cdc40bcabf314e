"""Work that goes on without its caller (concurrency.py): who is told when it fails."""

import asyncio
import logging

import pytest

from alcove.concurrency import shielded


class FullError(Exception):
    pass


async def fail(when: asyncio.Event) -> None:
    await when.wait()
    raise FullError("no room")


def test_a_failure_is_the_callers_and_no_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        now = asyncio.Event()
        now.set()
        with pytest.raises(FullError):
            await shielded(fail(now), name="a save")
        await asyncio.sleep(0)

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert caplog.records == []


def test_a_failure_that_nobody_awaits_any_more_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        later, finished = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            try:
                await fail(later)
            finally:
                finished.set()

        caller = asyncio.create_task(shielded(work(), name="a save"))
        await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        later.set()
        await finished.wait()
        await asyncio.sleep(0)

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert [record.getMessage() for record in caplog.records] == ["task a save failed"]
