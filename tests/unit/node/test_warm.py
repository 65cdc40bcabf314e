"""Which warm sandboxes there should be (node/warm.py): demand, limits, time."""

from pathlib import Path

import pytest

from alcove.node.drivers.driver import Image, Place
from alcove.node.ground import PlainGround, Size
from alcove.node.warm import WarmPool, Wish

SIZE = Size(2, 512, 1024)
GROUND = PlainGround("w", Path("/nowhere"))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def wish(name: str = "b1", size: Size = SIZE) -> Wish:
    return Wish(Image(name, Path("/rootfs"), Path("/agent"), Path(name), 2, 512), size)


def place(slot: int) -> Place:
    return GROUND.place(slot)


def fill(pool: WarmPool) -> list[str]:
    """Make what is missing; of which images that was, in order."""
    made: list[str] = []
    while (missing := pool.missing()) is not None:
        made.append(missing.image.build_id)
        assert pool.push(missing, place(len(made)), 0.1)
    return made


def test_a_ready_build_has_the_least_number(clock):
    pool = WarmPool(2, 8, clock)
    pool.add_build(wish())
    pool.add_build(wish())
    assert fill(pool) == ["b1", "b1"]


def test_a_users_snapshot_has_none_however_often_it_is_asked_for(clock):
    pool = WarmPool(2, 8, clock)
    for _ in range(100):
        pool.ask(wish("snapshot"))
        clock.now += 10
    assert pool.missing() is None
    assert pool.pop(wish("snapshot")) is None
    assert pool.target == 0


def test_demand_makes_it_larger_up_to_the_limit(clock):
    pool = WarmPool(2, 8, clock)
    pool.add_build(wish())
    for _ in range(60):
        pool.ask(wish())
        clock.now += 0.5
    assert 3 <= pool.target <= 5
    for _ in range(200):
        pool.ask(wish())
        clock.now += 0.05
    assert pool.target == 8
    assert len(fill(pool)) == 8


def test_what_was_asked_for_last_comes_first_and_the_rest_shares_what_is_left(clock):
    pool = WarmPool(2, 3, clock)
    for name in ("b1", "b2"):
        pool.add_build(wish(name))
        clock.now += 1
    pool.ask(wish("b1"))
    assert fill(pool) == ["b1", "b1", "b2"]


def test_without_demand_only_the_newest_keeps_its_own(clock):
    pool = WarmPool(2, 8, clock)
    for name in ("b1", "b2"):
        pool.add_build(wish(name))
        clock.now += 1
    fill(pool)
    assert pool.surplus() is None
    clock.now += 3600
    given_up = 0
    while pool.surplus() is not None:
        given_up += 1
    assert given_up == 2
    assert pool.pop(wish("b1")) is None
    assert pool.pop(wish("b2")) is not None


def test_what_demand_made_too_many_goes_only_after_a_while(clock):
    pool = WarmPool(1, 8, clock)
    pool.add_build(wish())
    for _ in range(100):
        pool.ask(wish())
        clock.now += 0.1
    fill(pool)
    many = len(pool)
    clock.now += 10
    assert pool.surplus() is None
    clock.now += 60
    while pool.surplus() is not None:
        pass
    assert many > len(pool) == 1


def test_the_oldest_is_handed_out_first_and_of_its_size_only(clock):
    pool = WarmPool(2, 8, clock)
    pool.add_build(wish())
    fill(pool)
    assert pool.pop(wish(size=Size(2, 512, 4096))) is None
    first = pool.pop(wish())
    assert first is not None
    assert first.slot == 1


def test_what_cannot_be_made_is_left_alone_for_a_while(clock):
    pool = WarmPool(1, 8, clock)
    pool.add_build(wish())
    pool.block(wish())
    assert pool.missing() is None
    assert not pool.is_low()
    clock.now += 60
    assert pool.missing() is not None


def test_short_of_memory_what_was_asked_for_longest_ago_goes_first(clock):
    pool = WarmPool(1, 8, clock)
    for name in ("b1", "b2"):
        pool.add_build(wish(name))
        clock.now += 1
    fill(pool)
    pool.shed()
    assert (pool.holds(wish("b1")), pool.holds(wish("b2"))) == (False, True)


def test_a_forgotten_build_leaves_its_places_to_the_caller(clock):
    pool = WarmPool(2, 8, clock)
    pool.add_build(wish())
    fill(pool)
    assert len(pool.forget("b1")) == 2
    assert not pool.push(wish(), place(9), 0.1)
    assert (len(pool), pool.target) == (0, 0)
