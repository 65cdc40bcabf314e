"""Which warm sandboxes there are and should be: restored, frozen, handed out on create.

    wanted ──restored and frozen──▶ warm ──popped──▶ a sandbox of its own
                                      └──surplus · forgotten──▶ given up

Bookkeeping only: places.py makes them, warming.py knows how. Only builds have warm sandboxes: what
a user's snapshot runs would go on, and act on the world, in a sandbox that nobody asked for. They
have them while they are asked for: so many as are asked for in two seconds, or while two are made.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from alcove.node.drivers.driver import Image, Place
from alcove.node.ground import Size

Key = tuple[Path, Size]

_HALF_LIFE_S = 15.0
_REMEMBERED_S = 600.0
"""So long after it was last asked for an image has warm sandboxes; the newest keeps its own."""
_RECENT_S = 20.0
"""So long nothing is given up because demand has become less."""
_BLOCKED_S = 30.0
_HORIZON_S = 2.0
_FIRST_GUESS_S = 0.3


@dataclass(frozen=True, slots=True)
class Wish:
    """One image at one size."""

    image: Image
    size: Size

    @property
    def key(self) -> Key:
        return self.image.snapshot or self.image.rootfs, self.size


@dataclass(slots=True)
class _Demand:
    """How one build is asked for, and what waits of it."""

    wish: Wish
    asked_at: float
    weight: float = 0.0
    """Number of times it was asked for, each fading with time."""
    blocked_until: float = 0.0
    places: deque[Place] = field(default_factory=deque)

    def ask(self, now: float) -> None:
        self.weight = self._weight(now) + 1
        self.asked_at = now

    def rate(self, now: float) -> float:
        return self._weight(now) * math.log(2) / _HALF_LIFE_S

    def _weight(self, now: float) -> float:
        return self.weight * math.exp2((self.asked_at - now) / _HALF_LIFE_S)


class WarmPool:
    """At most `most` warm sandboxes, at least `least` of each image that is in demand."""

    def __init__(self, least: int, most: int, now: Callable[[], float]) -> None:
        self._least = least
        self._most = most if least else 0
        self._now = now
        self._demands: dict[Key, _Demand] = {}
        self._refill_s = _FIRST_GUESS_S

    def add_build(self, wish: Wish) -> None:
        """A build has become ready; no harm if it is known."""
        self._demands.setdefault(wish.key, _Demand(wish, self._now()))

    def ask(self, wish: Wish) -> None:
        """A sandbox is to be started; of what is no build, nothing is remembered."""
        if demand := self._demands.get(wish.key):
            demand.ask(self._now())

    def pop(self, wish: Wish) -> Place | None:
        """The one that waited longest, for the caller to own."""
        demand = self._demands.get(wish.key)
        return demand.places.popleft() if demand is not None and demand.places else None

    def holds(self, wish: Wish) -> bool:
        demand = self._demands.get(wish.key)
        return demand is not None and bool(demand.places)

    def push(self, wish: Wish, place: Place, took_s: float) -> bool:
        """Keep one that was made; False if it is not wanted any more."""
        self._refill_s += (took_s - self._refill_s) / 4
        demand = self._demands.get(wish.key)
        if demand is None:
            return False
        demand.places.append(place)
        return True

    def block(self, wish: Wish) -> None:
        """It could not be made: do not try again at once."""
        if demand := self._demands.get(wish.key):
            demand.blocked_until = self._now() + _BLOCKED_S

    def missing(self) -> Wish | None:
        """Of what the next one should be made; what was asked for last comes first."""
        for demand, target in self._targets():
            if len(demand.places) < target and demand.blocked_until <= self._now():
                return demand.wish
        return None

    def is_low(self) -> bool:
        """Whether fewer than half wait of what was asked for last."""
        now = self._now()
        demand, target = next(iter(self._targets()), (None, 0))
        if demand is None or demand.blocked_until > now:
            return False
        return 2 * len(demand.places) < target

    def surplus(self) -> Place | None:
        """One that nobody will miss, for the caller to give up."""
        now = self._now()
        for demand, target in reversed(self._targets()):
            if now - demand.asked_at > _RECENT_S and len(demand.places) > target:
                return demand.places.popleft()
        return self.shed() if len(self) > self._most else None

    def shed(self) -> Place | None:
        """One of what was asked for longest ago: memory is short."""
        for demand in sorted(self._demands.values(), key=lambda demand: demand.asked_at):
            if demand.places:
                return demand.places.popleft()
        return None

    def forget(self, build_id: str) -> list[Place]:
        """Know nothing of a build any more; its warm sandboxes, to be given up."""
        keys = [
            key for key, known in self._demands.items() if known.wish.image.build_id == build_id
        ]
        return [place for key in keys for place in self._demands.pop(key).places]

    def clear(self) -> list[Place]:
        demands, self._demands = self._demands, {}
        return [place for demand in demands.values() for place in demand.places]

    @property
    def target(self) -> int:
        """How many there should be."""
        return sum(target for _, target in self._targets())

    def __len__(self) -> int:
        return sum(len(demand.places) for demand in self._demands.values())

    def _targets(self) -> list[tuple[_Demand, int]]:
        """What should wait of each image, the one asked for last first."""
        now = self._now()
        left = self._most
        targets = []
        known = sorted(self._demands.values(), key=lambda demand: demand.asked_at, reverse=True)
        for index, demand in enumerate(known):
            target = 0
            if index == 0 or now - demand.asked_at < _REMEMBERED_S:
                horizon_s = max(_HORIZON_S, 2 * self._refill_s)
                needed = math.ceil(demand.rate(now) * horizon_s)
                target = min(left, max(self._least, needed))
            left -= target
            targets.append((demand, target))
        return targets
