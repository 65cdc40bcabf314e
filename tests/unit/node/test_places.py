"""The pool of places (node/places.py), on plain directories with the fake driver."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from alcove.node.drivers.driver import DriverError, Found, Image, Place
from alcove.node.drivers.fake import FakeDriver
from alcove.node.errors import NoCapacityError
from alcove.node.ground import PlainGround, Size
from alcove.node.memory import snapshot_mib
from alcove.node.places import Limits, Places

SIZE = Size(2, 512, 1024)


def image(name: str = "b1") -> Image:
    return Image(name, Path(name), Path(), Path(name), 2, 512)


class AwkwardGround(PlainGround):
    """Fails or waits when a test tells it to."""

    def __init__(self, directory: Path) -> None:
        super().__init__("nsv", directory)
        self.hold: asyncio.Event | None = None
        self.making = asyncio.Event()
        self.errors: list[OSError] = []

    async def make(self, place: Place, size: Size) -> None:
        self.making.set()
        if self.hold is not None:
            await self.hold.wait()
        await super().make(place, size)
        if self.errors:
            raise self.errors.pop()


class CountingDriver(FakeDriver):
    """Counts, and fails to prepare when a test tells it to."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[DriverError] = []

    async def prepare(self, place: Place, image: Image) -> None:
        if self.errors:
            raise self.errors.pop()
        await super().prepare(place, image)


class SnapshotlessDriver(FakeDriver):
    """Restores from nothing."""

    async def restore(self, place: Place, image: Image) -> None:
        await self.boot(place, image)


@dataclass
class Pool:
    places: Places
    ground: AwkwardGround
    driver: CountingDriver
    directory: Path

    def slots(self) -> set[int]:
        return {int(path.name) for path in self.directory.iterdir()}

    async def until_prepared(self, count: int) -> None:
        await turns(lambda: self.places.prepared == count)


@contextlib.asynccontextmanager
async def pool(
    directory: Path,
    *,
    per_image: int = 2,
    total: int = 4,
    slots: int = 50,
    reserve_mib: int = 0,
    beside: int = 0,
) -> AsyncIterator[Pool]:
    ground, driver = AwkwardGround(directory), CountingDriver()
    places = Places(ground, driver, Limits(slots, per_image, total, 0.0, beside, reserve_mib))
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        work = tasks.create_task(places.run())
        yield Pool(places, ground, driver, directory)
        work.cancel()


async def turns(true: Callable[[], bool]) -> None:
    """Give the others turns until it is true; the pool's time limit ends it otherwise."""
    while not true():  # noqa: ASYNC110
        await asyncio.sleep(0)


def play(act: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(act())  # type: ignore[arg-type]


def test_an_empty_pool_makes_a_place_on_the_spot(tmp_path):
    async def act() -> None:
        async with pool(tmp_path, per_image=0) as p:
            taken = await p.places.take(image(), SIZE)
            assert not taken.prepared
            assert taken.place.disk.is_dir()

    play(act)


def test_a_wanted_image_gets_places_which_are_handed_out_and_replaced(tmp_path):
    async def act() -> None:
        async with pool(tmp_path) as p:
            p.places.want(image(), SIZE)
            await p.until_prepared(2)
            taken = [await p.places.take(image(), SIZE) for _ in range(2)]
            assert all(t.prepared for t in taken)
            assert [await p.driver.find(t.place) for t in taken] == [Found.PREPARED] * 2
            await p.until_prepared(2)
            assert p.places.in_use == 2
            assert len(p.slots()) == 4

    play(act)


def test_a_place_prepared_for_another_size_is_not_used(tmp_path):
    async def act() -> None:
        async with pool(tmp_path) as p:
            p.places.want(image(), SIZE)
            await p.until_prepared(2)
            assert not (await p.places.take(image(), Size(2, 512, 4096))).prepared

    play(act)


def test_the_image_wanted_longest_ago_loses_its_places(tmp_path):
    async def act() -> None:
        async with pool(tmp_path, per_image=2, total=4) as p:
            for name in ("b1", "b2", "b3"):
                p.places.want(image(name), SIZE)
            await p.until_prepared(4)
            assert not (await p.places.take(image("b1"), SIZE)).prepared
            assert (await p.places.take(image("b3"), SIZE)).prepared

    play(act)


def test_a_forgotten_image_has_no_places(tmp_path):
    async def act() -> None:
        async with pool(tmp_path) as p:
            p.places.want(image(), SIZE)
            await p.until_prepared(2)
            p.places.forget("b1")
            await p.places.cleared()
            assert p.places.prepared == 0
            assert p.slots() == set()

    play(act)


def test_nothing_is_prepared_while_sandboxes_start(tmp_path):
    async def act() -> None:
        async with pool(tmp_path) as p:
            with p.places.foreground():
                p.places.want(image(), SIZE)
                for _ in range(50):
                    await asyncio.sleep(0)
                assert p.slots() == set()
            await p.until_prepared(2)

    play(act)


def test_an_empty_pool_is_filled_beside_a_few_starts_but_no_further(tmp_path):
    async def act() -> None:
        async with pool(tmp_path, beside=1) as p:
            with p.places.foreground():
                p.places.want(image(), SIZE)
                await p.until_prepared(1)
                for _ in range(50):
                    await asyncio.sleep(0)
                assert p.places.prepared == 1
                with p.places.foreground():
                    await p.places.take(image(), SIZE)
                    for _ in range(50):
                        await asyncio.sleep(0)
                    assert p.places.prepared == 0
            await p.until_prepared(2)

    play(act)


def test_nothing_is_prepared_when_memory_is_short(tmp_path):
    async def act() -> None:
        async with pool(tmp_path, reserve_mib=10**9) as p:
            p.places.want(image(), SIZE)
            for _ in range(50):
                await asyncio.sleep(0)
            assert p.slots() == set()
            assert not (await p.places.take(image(), SIZE)).prepared

    play(act)


def test_a_released_place_is_cleared_and_its_slot_used_again(tmp_path):
    async def act() -> None:
        async with pool(tmp_path, per_image=0, slots=1) as p:
            taken = await p.places.take(image(), SIZE)
            (taken.place.disk / "secret").write_text("of the last guest")
            with pytest.raises(NoCapacityError):
                await p.places.take(image(), SIZE)
            p.places.release(taken.place)
            await p.places.cleared()
            again = await p.places.take(image(), SIZE)
            assert again.place.slot == taken.place.slot
            assert list(again.place.disk.iterdir()) == []

    play(act)


def test_what_a_crash_left_is_found_and_its_slot_is_not_used_before_it_is_cleared(tmp_path):
    async def act() -> None:
        async with pool(tmp_path, per_image=0) as p:
            for slot in (1, 2, 3):
                await p.ground.make(p.ground.place(slot), SIZE)
            kept = p.places.claim(2)
            assert await p.places.sweep() == 2
            assert (await p.places.take(image(), SIZE)).place.slot == 4
            await p.places.cleared()
            assert p.slots() == {2, 4}
            assert kept.directory.is_dir()
            assert await p.places.sweep() == 0

    play(act)


def test_a_place_that_cannot_be_made_leaves_nothing(tmp_path):
    async def act() -> None:
        async with pool(tmp_path, per_image=0) as p:
            p.ground.errors = [OSError("no space")]
            with pytest.raises(OSError, match="no space"):
                await p.places.take(image(), SIZE)
            await p.places.cleared()
            assert p.slots() == set()

    play(act)


def test_a_place_given_up_while_it_is_made_is_cleared_only_after_it_is_made(tmp_path):
    async def act() -> None:
        async with pool(tmp_path, per_image=0) as p, asyncio.TaskGroup() as tasks:
            p.ground.hold = asyncio.Event()
            taking = tasks.create_task(p.places.take(image(), SIZE))
            await p.ground.making.wait()
            taking.cancel()
            await asyncio.wait([taking])
            assert p.slots() == set()
            p.ground.hold.set()
            await turns(lambda: len(p.slots()) == 1)
            await turns(lambda: not p.slots())

    play(act)


def test_an_image_that_cannot_be_prepared_is_left_alone_until_it_is_wanted_again(tmp_path):
    async def act() -> None:
        async with pool(tmp_path) as p:
            p.driver.errors = [DriverError("no runsc")]
            p.places.want(image(), SIZE)
            await turns(lambda: not p.driver.errors)
            await p.places.cleared()
            assert p.places.prepared == 0
            p.places.want(image(), SIZE)
            await p.until_prepared(2)

    play(act)


def test_a_scratch_place_lasts_as_long_as_its_block(tmp_path):
    async def act() -> None:
        async with pool(tmp_path, per_image=0) as p:
            with contextlib.suppress(ZeroDivisionError):
                async with p.places.scratch(SIZE) as place:
                    assert place.disk.is_dir()
                    raise ZeroDivisionError
            await p.places.cleared()
            assert p.slots() == set()

    play(act)


def test_close_gives_prepared_places_back_and_leaves_taken_ones(tmp_path):
    async def act() -> None:
        async with pool(tmp_path) as p:
            p.places.want(image(), SIZE)
            await p.until_prepared(2)
            taken = await p.places.take(image(), SIZE)
            await p.places.close()
            assert p.slots() == {taken.place.slot}

    play(act)


def test_places_of_one_root_file_system_serve_every_snapshot_of_it(tmp_path):
    async def act() -> None:
        async with pool(tmp_path) as p:
            p.places.want(image(), SIZE)
            await p.until_prepared(2)
            saved = replace(image(), snapshot=Path("/snapshots/1"))
            assert (await p.places.take(saved, SIZE)).prepared
            await p.until_prepared(2)
            assert (await p.places.take(image(), SIZE)).prepared

    play(act)


def test_what_would_bring_memory_below_the_reserve_is_not_made_warm(tmp_path, monkeypatch):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "pages.img").write_bytes(b"x" * (10 << 20))
    heavy = replace(image(), snapshot=snapshot)
    assert snapshot_mib(heavy) == 10

    async def act(available_mib: int, count: int) -> None:
        monkeypatch.setattr("alcove.node.places.memory_available_mib", lambda: available_mib)
        limits = Limits(50, 0, 0, 0.0, 0, 1, warm_per_image=2, warm_total=4)
        places = Places(AwkwardGround(tmp_path), SnapshotlessDriver(), limits)
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            work = tasks.create_task(places.run())
            places.want(heavy, SIZE)
            await turns(lambda: len(places.warm) == count)
            for _ in range(50):
                await asyncio.sleep(0)
            assert len(places.warm) == count
            await places.close()
            work.cancel()

    play(lambda: act(11, 0))
    play(lambda: act(12, 2))


def test_short_of_memory_warm_sandboxes_are_given_up(tmp_path, monkeypatch):
    async def act() -> None:
        ground, driver = AwkwardGround(tmp_path), SnapshotlessDriver()
        limits = Limits(50, 0, 0, 0.0, 0, 1, warm_per_image=2, warm_total=4)
        places = Places(ground, driver, limits)
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            work = tasks.create_task(places.run())
            places.want(image(), SIZE)
            await turns(lambda: len(places.warm) == 2)
            monkeypatch.setattr("alcove.node.places.memory_available_mib", lambda: 1)
            await places.sweep()
            assert len(places.warm) == 0
            await places.cleared()
            work.cancel()

    play(act)
