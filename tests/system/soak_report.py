"""What a soak did and found; shared by its workers."""

import json
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from system.soak_guest import Contents


@dataclass(slots=True)
class Report:
    seed: int
    cycles_wanted: int
    cycles: int = 0
    steps: Counter[str] = field(default_factory=Counter)
    excused: Counter[str] = field(default_factory=Counter)
    """Steps that failed while something was dead or full, by step and answer."""
    faults: Counter[str] = field(default_factory=Counter)
    corrupted: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    """Steps that failed though nothing was wrong."""
    leaked: dict[str, Any] = field(default_factory=dict)
    wrong_bills: list[str] = field(default_factory=list)
    strays: int = 0
    """Sandboxes whose making was answered with an error, or not at all."""
    known: set[str] = field(default_factory=set)
    ever: set[Contents] = field(default_factory=set)
    """Everything any sandbox was seen to hold."""
    begun: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take_cycle(self) -> bool:
        """Whether another cycle is wanted."""
        with self._lock:
            if self.cycles >= self.cycles_wanted:
                return False
            self.cycles += 1
            if self.cycles % 100 == 0:
                self._say(f"{self.cycles} cycles, {len(self._wrong())} findings")
            return True

    def found(self, where: list[str], text: str) -> None:
        with self._lock:
            where.append(f"cycle {self.cycles}: {text}")
            self._say(where[-1])

    @property
    def good(self) -> bool:
        return not self._wrong()

    def text(self) -> str:
        shown = {
            "seed": self.seed,
            "seconds": round(time.monotonic() - self.begun),
            "cycles": self.cycles,
            "steps": dict(self.steps),
            "faults": dict(self.faults),
            "excused": dict(self.excused),
            "strays": self.strays,
            "corrupted": self.corrupted,
            "lost": self.lost,
            "unexpected": self.unexpected,
            "leaked": self.leaked,
            "wrong bills": self.wrong_bills,
        }
        return json.dumps(shown, indent=1)

    def _wrong(self) -> list[Any]:
        return [
            *self.corrupted,
            *self.lost,
            *self.unexpected,
            *self.leaked.items(),
            *self.wrong_bills,
        ]

    def _say(self, text: str) -> None:
        sys.stderr.write(f"{time.monotonic() - self.begun:7.1f} s  {text}\n")
