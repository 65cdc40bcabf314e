"""Forks and rollbacks: how long until the right memory answers, and how long the source stands."""

import asyncio
import concurrent.futures
import time
from collections.abc import Callable, Iterable
from typing import Any

from alcove.cli.bench import machine, raw, witness
from alcove.cli.bench.series import Series, expect, milliseconds, verified
from alcove.cli.bench.workbench import LIFE_S, Workbench
from alcove.node.drivers.driver import Image

KEPT_BYTES = 8 * 1000 * 1000
CLIENTS = 16
QUIET_S = 2.0
SETTLE_S = 8.0
FLOOR_ROUNDS = 3


def forks(bench: Workbench, rounds: dict[int, int]) -> list[Series]:
    """`rounds` says how often to fork into how many; raw restores of the same stand beside them.

    The clones of the largest fork stay for a while, to see what they cost.
    """
    measured: list[Series] = []
    source = _Source(bench)
    for count, times in rounds.items():
        wall = Series(f"fork {count}", "ms", note="to the right answer of a command in all")
        each = Series(f"fork {count}, each", "ms", note="from the request, so later ones wait")
        cost = _Cost(bench, count)
        for turn in range(times):
            children = source.fork(count, wall, each)
            if count == max(rounds) and turn == times - 1:
                cost.look(children)
            _kill(children)
        measured += [wall, each, *cost.series()]
    image = source.raw_image()
    for count, times in rounds.items():
        wall = raw.restores(count)
        for _ in range(min(times, FLOOR_ROUNDS)):
            asyncio.run(raw.restore_many(image, count, wall))
        measured.append(wall)
    source.sandbox.kill()
    return measured


def source_stop(bench: Workbench, rounds: int) -> list[Series]:
    """The longest moment in which a program of the source did not run while it was forked."""
    longest = Series(
        "source stop, longest", "ms", note="seen by a program inside that wakes at 1 ms"
    )
    total = Series("source stop, in all", "ms", note="sum of its stops of 5 ms and more")
    noise = Series("floor: stop without a fork", "ms", note="the longest in as many seconds")
    floors = raw.SnapshotFloors("fork source")
    source = _Source(bench)
    sandbox = source.sandbox
    witness.watch(sandbox)
    for _ in range(rounds):
        _, gaps = _gaps_during(sandbox, lambda: time.sleep(QUIET_S))
        noise.values.append(max(gaps, default=0.0))
        children, gaps = _gaps_during(sandbox, lambda: bench.fork(sandbox.sandbox_id, 1))
        longest.values.append(max(gaps, default=0.0))
        total.values.append(sum(gaps))
        with verified(longest):
            source.expect_memory(sandbox)
            source.expect_memory(children[0])
        _kill(children)
    for _ in range(FLOOR_ROUNDS):
        asyncio.run(floors.measure(source.raw_image(), bench.installation.data_dir))
        sandbox.connect()
    sandbox.kill()
    return [longest, total, noise, floors.checkpoint, floors.restore]


def rollback(bench: Workbench, rounds: int) -> list[Series]:
    """Back to a checkpoint in place, until a command gets the word that was in memory then."""
    series = Series("rollback", "ms", note="the request to the output of the first command")
    checkpoint = Series("checkpoint", "ms", note="8 MB in memory; the sandbox goes on")
    sandbox = bench.sandbox()
    keeper = witness.keep(sandbox, KEPT_BYTES)
    for _ in range(rounds):
        taken = ""
        with milliseconds(checkpoint):
            taken = bench.checkpoint(sandbox.sandbox_id)
        expect("set", witness.ask(sandbox, "set/other"), "other")
        body = {"checkpoint": taken, "timeout": LIFE_S}
        with milliseconds(series):
            bench.post(f"/v1/sandboxes/{sandbox.sandbox_id}/rollback", body)
            witness.expect_word(sandbox, keeper)
        with verified(series):
            witness.expect_memory(sandbox, keeper)
    sandbox.kill()
    return [checkpoint, series]


class _Source:
    """A sandbox to fork, with a keeper whose memory every child must have."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self.sandbox = bench.sandbox()
        self._keeper = witness.keep(self.sandbox, KEPT_BYTES)

    def fork(self, count: int, wall: Series, each: Series) -> list[Any]:
        """Time every child's first right answer, then check all of its memory."""
        answers = Series("answers", "ms")
        started = time.perf_counter()

        def answer(child: Any) -> None:
            try:
                witness.expect_word(child, self._keeper)
            except Exception as error:
                answers.failures.append(f"{type(error).__name__}: {error}"[:300])
            else:
                answers.values.append((time.perf_counter() - started) * 1000)

        children: list[Any] = []
        with milliseconds(wall):
            children += self._bench.fork(self.sandbox.sandbox_id, count)
            _all(answer, children)
            expect("right answers", (len(answers.values), answers.failures[:1]), (count, []))
        each.extend(answers)
        with verified(wall):
            _all(self.expect_memory, children)
        return children

    def expect_memory(self, sandbox: Any) -> None:
        witness.expect_memory(sandbox, self._keeper)

    def raw_image(self) -> Image:
        """Pause the source: what a raw restore needs of it."""
        expect("pause", self.sandbox.pause(), wanted=True)
        snapshot = self._bench.snapshots_of(self.sandbox.sandbox_id)[-1]
        return raw.image_of(self._bench.installation, snapshot["snapshot_id"])


class _Cost:
    """Memory of idle clones, each by its control group and all by what the machine lost."""

    def __init__(self, bench: Workbench, count: int) -> None:
        self._bench = bench
        self._available_before = machine.memory_available_mib()
        self._each = Series(
            f"memory per idle clone of {count}", "MiB", note="of its control group, no page cache"
        )
        self._all = Series(
            f"memory of {count} idle clones", "MiB", note="what the machine has less than before"
        )

    def look(self, clones: list[Any]) -> None:
        time.sleep(SETTLE_S)
        groups = [machine.group(self._bench.installation, c.sandbox_id) for c in clones]
        self._each.values += [group.usage().memory_used / 2**20 for group in groups]
        self._all.values.append(self._available_before - machine.memory_available_mib())

    def series(self) -> list[Series]:
        return [self._each, self._all] if self._each.values else []


def _gaps_during(source: Any, work: Callable[[], Any]) -> tuple[Any, list[float]]:
    witness.forget_gaps(source)
    time.sleep(QUIET_S / 4)
    made = work()
    time.sleep(QUIET_S / 4)
    return made, witness.gaps_ms(source)


def _all(work: Callable[[Any], object], sandboxes: Iterable[Any]) -> None:
    """Do the work with every sandbox, CLIENTS at once; raises what one of them raised."""
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as clients:
        for _ in clients.map(work, sandboxes):
            pass


def _kill(sandboxes: list[Any]) -> None:
    _all(lambda sandbox: sandbox.kill(), sandboxes)
