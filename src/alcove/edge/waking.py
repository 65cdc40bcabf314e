"""Paused sandboxes are woken by their traffic (contract e2b 4.4).

Control resumes; the edge asks it once, however many requests wait, and again if control or the
node goes away in between: a repeated question joins the resume that is under way. A client that
leaves stops waiting; the wake goes on.
"""

import asyncio
import itertools
import json
import time
from dataclasses import dataclass

import structlog

from alcove.concurrency import spawn
from alcove.edge import metrics
from alcove.edge.catalog import Catalog, Route, read_answer
from alcove.edge.control_client import ControlClient, ControlSilentError
from alcove.edge.errors import (
    ResumeDeniedError,
    ResumeLimitError,
    ResumeTimeoutError,
    SandboxNotFoundError,
    SandboxRefusalError,
    TransitioningError,
    UnavailableError,
    UnusableSnapshotError,
)
from alcove.edge.metrics import Woken
from alcove.wire.errors import ErrorCode
from alcove.wire.ids import SandboxId

LIMIT_S = 60.0
MAX_WAITING = 1024
MAX_WAITING_PER_SANDBOX = 256
PERSIST_S = 10.0
"""How long to ask again when control says "not now": a node that restarts is back sooner."""
_AGAIN_PAUSES_S = (0.05, 0.2, 0.5)
_AGAIN_PERIOD_S = 1.0
_UNUSABLE = frozenset({ErrorCode.SNAPSHOT_DAMAGED, ErrorCode.SNAPSHOT_INCOMPATIBLE})
_log = structlog.get_logger()


@dataclass(slots=True)
class _Wake:
    task: asyncio.Task[Route | SandboxRefusalError]
    waiting: int = 0


class Waker:
    def __init__(self, control: ControlClient, catalog: Catalog) -> None:
        self._control = control
        self._catalog = catalog
        self._wakes: dict[SandboxId, _Wake] = {}
        self._waiting = 0

    async def wake(self, sandbox_id: SandboxId) -> Route:
        """Have a paused sandbox resumed and wait for it. Raises SandboxRefusalError."""
        wake = self._wakes.get(sandbox_id)
        waiting_here = 0 if wake is None else wake.waiting
        if self._waiting >= MAX_WAITING or waiting_here >= MAX_WAITING_PER_SANDBOX:
            raise UnavailableError(
                sandbox_id, "Too many requests wait for the sandbox to be resumed, try again"
            )
        if wake is None:
            wake = self._begin(sandbox_id)
        wake.waiting += 1
        self._waiting += 1
        metrics.waiting.inc()
        try:
            answer = await asyncio.shield(wake.task)
        finally:
            wake.waiting -= 1
            self._waiting -= 1
            metrics.waiting.dec()
        if isinstance(answer, Route):
            return answer
        raise answer

    def _begin(self, sandbox_id: SandboxId) -> _Wake:
        wake = _Wake(spawn(self._wake(sandbox_id), name=f"wake {sandbox_id}"))
        self._wakes[sandbox_id] = wake
        wake.task.add_done_callback(lambda _: self._wakes.pop(sandbox_id))
        return wake

    async def _wake(self, sandbox_id: SandboxId) -> Route | SandboxRefusalError:
        began = time.monotonic()
        try:
            async with asyncio.timeout(LIMIT_S):
                status, body = await self._ask(sandbox_id)
            outcome, answer = _read(sandbox_id, status, body)
        except TimeoutError:
            outcome, answer = Woken.LATE, ResumeTimeoutError(sandbox_id, LIMIT_S)
        took_s = time.monotonic() - began
        metrics.wakes[outcome].inc()
        if isinstance(answer, Route):
            metrics.wake_seconds.observe(took_s)
            self._catalog.remember(answer)
            _log.info("sandbox.woken", sandbox_id=sandbox_id, seconds=round(took_s, 3))
        else:
            _log.warning("sandbox.not_woken", sandbox_id=sandbox_id, outcome=outcome.value)
        return answer

    async def _ask(self, sandbox_id: SandboxId) -> tuple[int, bytes]:
        path = f"/internal/sandboxes/{sandbox_id}/wake"
        persist_until = time.monotonic() + PERSIST_S
        for pause_s in itertools.chain(_AGAIN_PAUSES_S, itertools.repeat(_AGAIN_PERIOD_S)):
            try:
                status, body = await self._control.post(path, LIMIT_S)
            except ControlSilentError:
                pass
            else:
                full = _error_code(body) == ErrorCode.CAPACITY
                if status != 503 or full or time.monotonic() >= persist_until:
                    return status, body
            await asyncio.sleep(pause_s)
        raise AssertionError


def _read(
    sandbox_id: SandboxId, status: int, body: bytes
) -> tuple[Woken, Route | SandboxRefusalError]:
    if status != 200 and _error_code(body) in _UNUSABLE:
        return Woken.FAILED, UnusableSnapshotError(sandbox_id)
    match status:
        case 403:
            return Woken.DENIED, ResumeDeniedError(sandbox_id)
        case 404:
            return Woken.GONE, SandboxNotFoundError(sandbox_id)
        case 409:
            return Woken.TRANSITIONING, TransitioningError(sandbox_id)
        case 429:
            return Woken.LIMIT, ResumeLimitError(sandbox_id)
    try:
        answer = read_answer(status, body)
    except ControlSilentError:
        answer = None
    if isinstance(answer, Route):
        return Woken.WOKEN, answer
    return Woken.FAILED, UnavailableError(
        sandbox_id, "The sandbox is paused and cannot be resumed at the moment, try again"
    )


def _error_code(body: bytes) -> str | None:
    try:
        code = json.loads(body)["error_code"]
    except (ValueError, KeyError, TypeError):
        return None
    return code if isinstance(code, str) else None
