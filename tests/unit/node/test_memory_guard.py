"""The memory guard (node/memory_guard.py) and the meter (node/meter.py), against the fake guest."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import h11
import pytest

from alcove.node.drivers.driver import Image, Place
from alcove.node.drivers.fake import FakeDriver
from alcove.node.ground import PlainGround, Size, Used
from alcove.node.guest_client import EndedProcess, GuestClient
from alcove.node.memory_guard import MemoryGuard
from alcove.node.meter import Meter

THRESHOLD = 1000
LIMIT = 1200
LENT = LIMIT + (512 << 20)


class FullGround(PlainGround):
    """One crossing of the threshold, then the use that a test has written down."""

    def __init__(self, directory: Path, used: list[Used]) -> None:
        super().__init__("nsv", directory)
        self.used = used
        self.limit = LIMIT
        self.limits: list[int] = []
        self.refuse_to_lower = 0

    async def memory_above(self, place: Place, threshold_bytes: int) -> AsyncIterator[int]:
        yield threshold_bytes

    def usage(self, place: Place) -> Used:
        return self.used.pop(0)

    def limit_memory(self, place: Place, limit_bytes: int) -> bool:
        if limit_bytes < self.limit and self.refuse_to_lower:
            self.refuse_to_lower -= 1
            return False
        if limit_bytes != self.limit:
            self.limits.append(limit_bytes)
        self.limit = limit_bytes
        return True


class RelievingDriver(FakeDriver):
    """Its guest ends process 7 each time it is asked, unless files hold the memory."""

    def __init__(self, *, held_by_files: bool = False) -> None:
        super().__init__()
        self.held_by_files = held_by_files
        self.asked: list[Any] = []

    def _answer(
        self, place: Place, head: h11.Request, body: bytes
    ) -> tuple[int, dict[str, Any] | None]:
        if head.target == b"/memory/relieve":
            self.asked.append(json.loads(body))
            return 200, {} if self.held_by_files else {"pid": 7, "cmd": "bomb", "rssBytes": 900}
        return super()._answer(place, head, body)


def guard(
    tmp_path: Path,
    used: list[Used],
    *,
    refuse: int = 0,
    limit: int = LIMIT,
    driver: RelievingDriver | None = None,
) -> tuple[FullGround, list[Any]]:
    ground, told = FullGround(tmp_path, used), []
    ground.limit = limit
    driver = driver or RelievingDriver()

    async def act() -> None:
        place = ground.place(1)
        await ground.make(place, Size(1, 1, 1))
        await driver.boot(place, Image("b", Path(), Path(), None, 1, 1))
        ground.refuse_to_lower = refuse
        async with asyncio.timeout(10):
            await MemoryGuard(
                ground,
                place,
                threshold_bytes=THRESHOLD,
                limit_bytes=LIMIT,
                guest=GuestClient(driver, place, ""),
                wake=lambda: None,
                tell=told.append,
            ).run()
        await driver.stop(place)

    asyncio.run(act())
    return ground, told


def test_memory_is_lent_while_the_guest_ends_a_process(tmp_path):
    driver = RelievingDriver()
    ground, told = guard(tmp_path, [Used(memory=1100), Used(memory=200)], driver=driver)
    assert driver.asked == [{"usedBytes": 1100}]
    assert told == [EndedProcess(7, "bomb", 900)]
    assert ground.limits == [LENT, LIMIT]


def test_file_cache_ends_nothing(tmp_path):
    used = [Used(memory=500, memory_cache=600), Used(memory=500, memory_cache=100)]
    ground, told = guard(tmp_path, used)
    assert told == []
    assert ground.limits == []


def test_one_process_after_the_other_until_it_is_enough(tmp_path):
    _, told = guard(tmp_path, [Used(memory=1100), Used(memory=1050), Used(memory=10)])
    assert len(told) == 2


def test_a_loan_that_cannot_be_paid_back_yet_is_not_doubled(tmp_path):
    ground, _ = guard(tmp_path, [Used(memory=1100), Used(memory=1100), Used(memory=10)], refuse=1)
    assert ground.limits == [LENT, LIMIT]


@pytest.mark.parametrize("used", [10, 1100])
def test_a_loan_left_by_a_killed_daemon_is_paid_back(tmp_path, used):
    ground, _ = guard(tmp_path, [Used(memory=used), Used(memory=10)], limit=LENT)
    assert ground.limits[0] == ground.limits[-1] == LIMIT


def test_a_loan_left_over_is_paid_back_once_there_is_room(tmp_path):
    ground, _ = guard(tmp_path, [Used(memory=1100), Used(memory=10)], limit=LENT, refuse=2)
    assert ground.limits == [LIMIT]


def test_what_files_hold_is_told_once_and_keeps_no_loan(tmp_path):
    driver = RelievingDriver(held_by_files=True)
    used = [Used(memory=1100), Used(memory=1100), Used(memory=10)]
    ground, told = guard(tmp_path, used, driver=driver)
    assert told == [None]
    assert len(driver.asked) == 2  # files may have gone, and a process grown
    assert ground.limits == [LENT, LIMIT] * 2


def test_the_processor_share_is_of_the_time_since_the_last_look(tmp_path):
    used = [Used(cpu_seconds=s) for s in (1.0, 1.2, 2.0)]
    ground = FullGround(tmp_path, used)
    meter = Meter(ground, ground.place(1), Size(2, 1, 1), started_at=0.0)
    assert meter.sample(10.0).cpu_used_pct == 10.0
    assert meter.sample(10.1).cpu_used_pct == 10.0  # too soon to say anything new
    assert meter.sample(10.5).cpu_used_pct == 200.0
