"""What the node does when a guest is late, mute or talks nonsense (node/guest_client.py)."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import h11
import pytest

from alcove.node import guest_client
from alcove.node.drivers.driver import Image, Place
from alcove.node.drivers.fake import FakeDriver
from alcove.node.ground import PlainGround, Size
from alcove.node.guest_client import GuestClient, GuestError, GuestTimeoutError


class MuteDriver(FakeDriver):
    """Its first connections are accepted and never answered."""

    def __init__(self, mute: int) -> None:
        super().__init__()
        self.mute = mute
        self.kept: list[socket.socket] = []

    async def dial(self, place: Place, port: int, timeout_s: float) -> socket.socket:
        if not self.mute:
            return await super().dial(place, port, timeout_s)
        self.mute -= 1
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.kept.append(theirs)
        return ours

    def close(self) -> None:
        for connection in self.kept:
            connection.close()


def attempt(tmp_path: Path, driver: MuteDriver, *, timeout_s: float = 10) -> None:
    async def act() -> None:
        ground = PlainGround("nsv", tmp_path)
        place = ground.place(1)
        await ground.make(place, Size(1, 1, 1))
        await driver.boot(place, Image("b", Path(), Path(), None, 1, 1))
        await GuestClient(driver, place, "").init({"sandboxId": "i1"}, timeout_s)
        await driver.stop(place)

    try:
        asyncio.run(act())
    finally:
        driver.close()


def test_a_connection_that_is_never_answered_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_client, "_FIRST_ATTEMPT_S", 0.01)
    driver = MuteDriver(3)
    attempt(tmp_path, driver)
    assert len(driver.kept) == 3


def test_the_time_limit_of_all_attempts_is_kept(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match=r"in 0.05 s"):
        attempt(tmp_path, MuteDriver(1000), timeout_s=0.05)


def test_a_call_that_may_not_be_repeated_is_not(tmp_path: Path) -> None:
    async def act() -> None:
        driver, place = MuteDriver(1), PlainGround("nsv", tmp_path).place(1)
        with pytest.raises(GuestTimeoutError):
            await GuestClient(driver, place, "").relieve(0, 0.05)
        driver.close()
        assert len(driver.kept) == 1

    asyncio.run(act())


def test_an_agent_of_the_first_alcove_is_taken_as_it_is(tmp_path: Path) -> None:
    """Its /init answers without a body; a template of it serves until it is built anew."""

    class FirstAgent(FakeDriver):
        def _answer(
            self, place: Place, head: h11.Request, body: bytes
        ) -> tuple[int, dict[str, Any] | None]:
            status, answer = super()._answer(place, head, body)
            return (204, None) if head.target == b"/init" else (status, answer)

    async def act() -> dict[str, Any]:
        driver, ground = FirstAgent(), PlainGround("nsv", tmp_path)
        place = ground.place(1)
        await ground.make(place, Size(1, 1, 1))
        await driver.boot(place, Image("b", Path(), Path(), None, 1, 1))
        try:
            return await GuestClient(driver, place, "").init({"sandboxId": "i1"}, 10)
        finally:
            await driver.stop(place)

    assert asyncio.run(act()) == {}
