"""Processes that have to go on whoever ends them: a template's start command that asks for it.

    RUNNING ──ended──▶ RESTING ──a second, or longer where it does not last──▶ RUNNING
       └──────────────────┴──────────── reboot ────────────▶ let go

Programs of a sandbox can end each other, as root all of them; PID 1 they cannot.
"""

from asyncio import TimerHandle, get_running_loop
from collections.abc import Callable

from alcove.guest.processes import Process, Processes, Wanted
from alcove.guest.spawn import SpawnError
from alcove.wire.connect import ConnectError

_REST_S = 1.0
_LONGEST_REST_S = 30.0
_LASTING_S = 30.0
"""What ran so long is started soon when it ends."""


class Keeper:
    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._kept: list[_Kept] = []

    def start(self, make: Callable[[], Wanted]) -> Process:
        """Start a process and keep it running; `make` is asked each time.

        Raises SpawnError, and what `make` raises, the first time only.
        """
        kept = _Kept(self._processes, make)
        process = kept.start()
        self._kept.append(kept)
        return process

    def let_go(self) -> None:
        """Keep nothing any more; what runs, runs."""
        for kept in self._kept:
            kept.let_go()
        self._kept.clear()


class _Kept:
    def __init__(self, processes: Processes, make: Callable[[], Wanted]) -> None:
        self._processes = processes
        self._make = make
        self._loop = get_running_loop()
        self._rest_s = _REST_S
        self._began = 0.0
        self._resting: TimerHandle | None = None
        self._let_go = False

    def start(self) -> Process:
        self._began = self._loop.time()
        process = self._processes.start(self._make())
        process.on_exit = self._rest
        return process

    def let_go(self) -> None:
        self._let_go = True
        if self._resting is not None:
            self._resting.cancel()

    def _rest(self) -> None:
        if self._let_go:
            return
        if self._loop.time() - self._began >= _LASTING_S:
            self._rest_s = _REST_S
        self._resting = self._loop.call_later(self._rest_s, self._start_again)
        self._rest_s = min(2 * self._rest_s, _LONGEST_REST_S)

    def _start_again(self) -> None:
        try:
            self.start()
        except (SpawnError, ConnectError):
            # No memory just now, or its user is gone: it may come back.
            self._rest()
