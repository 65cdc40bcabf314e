"""Where sandboxes are: control's answers, kept for seconds.

    unknown ──ask──▶ fresh (5 s) ──▶ stale ──ask──▶ fresh
                       └── expire() ──▶ stale ──control away──▶ used as it is

A route is stale as well once the sandbox's time is over: it may be about to be paused, which would
cut off whatever is sent to it. A stale route is asked for again before it is used, but still used
when control does not answer: running sandboxes stay reachable while control restarts. A sandbox
that was killed or paused is not in the catalog's hands: its node refuses the tunnel, and the caller
says refute(). What control says of paused and unknown sandboxes is not kept: either may be running
the next moment.
"""

import asyncio
import json
import math
import re
import time
from collections import OrderedDict
from dataclasses import dataclass

import structlog

from alcove.concurrency import spawn
from alcove.edge.control_client import ControlClient, ControlSilentError
from alcove.edge.errors import SandboxNotFoundError, SandboxRefusalError, UnavailableError
from alcove.wire.ids import SandboxId
from alcove.wire.states import SandboxState

_FRESH_S = 5.0
# Whoever has read that a sandbox is paused, its time being over, may act on that at once: by then
# no route to its last life may count as fresh, however long control's answer was on its way.
_ASK_AHEAD_S = 0.05
_PATIENCE_S = 0.25
# Control answers at once, unless a resume or a pause is under way: it waits for that, up to 30 s.
_LIMIT_S = 35.0
# A control that restarts is back within this time.
_AWAY_PAUSES_S = (0.1, 0.2, 0.5, *[1.0] * 9)
_MAX_ROUTES = 50_000
_log = structlog.get_logger()
_MASK = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Route:
    sandbox_id: SandboxId
    generation: int
    node_ingress: tuple[str, int]
    traffic_token: str | None
    mask_request_host: str | None
    https_ports: frozenset[int] = frozenset()
    """Ports inside that speak TLS."""
    ends_at: float = math.inf
    """When its time is over, as far as is known, by time.monotonic()."""


@dataclass(frozen=True, slots=True)
class Asleep:
    """A paused sandbox: nowhere to be reached; traffic may wake it (admission.py)."""

    sandbox_id: SandboxId
    auto_resume: bool
    access_token: str
    traffic_token: str | None


@dataclass(slots=True)
class _Known:
    route: Route
    fresh_until: float


class Catalog:
    def __init__(self, control: ControlClient) -> None:
        self._control = control
        self._known: OrderedDict[SandboxId, _Known] = OrderedDict()
        self._asking: dict[SandboxId, asyncio.Task[Route | Asleep | SandboxRefusalError]] = {}
        self._is_silent = False

    def fresh(self, sandbox_id: SandboxId) -> Route | None:
        """The route, if it need not be asked for."""
        known = self._known.get(sandbox_id)
        if known is None or known.fresh_until < time.monotonic():
            return None
        return known.route

    async def find(self, sandbox_id: SandboxId, *, patient: bool = False) -> Route | Asleep:
        """Raises SandboxNotFoundError, or UnavailableError when nobody can be asked.

        `patient` waits for control even where there is a stale route to go by.
        """
        route = self.fresh(sandbox_id)
        if route is not None:
            return route
        known = self._known.get(sandbox_id)
        try:
            # Who has something to go by does not wait for a control that hangs.
            async with asyncio.timeout(None if known is None or patient else _PATIENCE_S):
                answer = await asyncio.shield(self._ask_once(sandbox_id))
        except TimeoutError:
            assert known is not None
            return known.route
        if isinstance(answer, SandboxRefusalError):
            raise answer
        return answer

    def expire(self, sandbox_id: SandboxId) -> None:
        """The route may be wrong: ask before it is used again."""
        known = self._known.get(sandbox_id)
        if known is not None and known.fresh_until > 0:
            known.fresh_until = 0.0
            self._asking.pop(sandbox_id, None)  # asked before this was known

    def refute(self, route: Route) -> None:
        """The node knows of no such life: the route is of no more use, even if control is away."""
        known = self._known.get(route.sandbox_id)
        if known is not None and known.route.generation == route.generation:
            del self._known[route.sandbox_id]
            self._asking.pop(route.sandbox_id, None)

    def learn(self, route: Route) -> bool:
        """Keep what control says unasked; False if something newer is known."""
        known = self._known.get(route.sandbox_id)
        if known is not None and known.route.generation > route.generation:
            return False
        self.remember(route)
        return True

    def remember(self, route: Route) -> None:
        """Keep what control has just said."""
        fresh_until = min(time.monotonic() + _FRESH_S, route.ends_at - _ASK_AHEAD_S)
        self._known[route.sandbox_id] = _Known(route, fresh_until)
        self._known.move_to_end(route.sandbox_id)
        if len(self._known) > _MAX_ROUTES:
            self._known.popitem(last=False)

    def _ask_once(
        self, sandbox_id: SandboxId
    ) -> asyncio.Task[Route | Asleep | SandboxRefusalError]:
        """Many requests for one sandbox make one question."""
        asking = self._asking.get(sandbox_id)
        if asking is None:
            asking = spawn(self._ask(sandbox_id), name=f"route of {sandbox_id}")
            self._asking[sandbox_id] = asking
            asking.add_done_callback(lambda done: self._asked(sandbox_id, done))
        return asking

    def _asked(self, sandbox_id: SandboxId, done: asyncio.Task[object]) -> None:
        if self._asking.get(sandbox_id) is done:
            del self._asking[sandbox_id]

    async def _ask(self, sandbox_id: SandboxId) -> Route | Asleep | SandboxRefusalError:
        for pause_s in (*_AWAY_PAUSES_S, None):
            try:
                status, body = await self._control.get(f"/internal/routes/{sandbox_id}", _LIMIT_S)
                answer = None if status == 404 else read_answer(status, body)
                break
            except ControlSilentError as error:
                self._note_silence(error)
                known = self._known.get(sandbox_id)
                if known is not None:
                    return known.route
                if pause_s is None or not error.is_away:
                    return UnavailableError(
                        sandbox_id, "The sandbox cannot be looked up at the moment, try again"
                    )
                await asyncio.sleep(pause_s)
        self._note_silence(None)
        if isinstance(answer, Route):
            self.remember(answer)
            return answer
        self._known.pop(sandbox_id, None)
        return SandboxNotFoundError(sandbox_id) if answer is None else answer

    def _note_silence(self, error: ControlSilentError | None) -> None:
        if error is not None and not self._is_silent:
            _log.warning("control.lost", reason=str(error), cause=repr(error.__cause__))
        elif error is None and self._is_silent:
            _log.info("control.found_again")
        self._is_silent = error is not None


def read_answer(status: int, body: bytes) -> Route | Asleep:
    """Read what control says of a sandbox. Raises ControlSilentError."""
    if status != 200:
        raise ControlSilentError(f"control answered {status} when asked for a route")
    try:
        data = json.loads(body)
        if data.get("state") == SandboxState.PAUSED:
            return Asleep(
                sandbox_id=SandboxId(data["sandbox_id"]),
                auto_resume=data["auto_resume"] is True,
                access_token=_read_token(data["access_token"]),
                traffic_token=data.get("traffic_token"),
            )
        host, _, port = data["node_ingress"].rpartition(":")
        return Route(
            sandbox_id=SandboxId(data["sandbox_id"]),
            generation=int(data["generation"]),
            node_ingress=(host.strip("[]"), int(port)),
            traffic_token=data.get("traffic_token"),
            mask_request_host=_read_mask(data.get("mask_request_host")),
            https_ports=frozenset(map(int, data.get("https_ports", ()))),
            ends_at=time.monotonic() + float(data.get("runs_for_s", math.inf)),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ControlSilentError("control's route cannot be read") from error


def _read_token(token: object) -> str:
    if not isinstance(token, str) or not token:
        raise ValueError("no access token")
    return token


def _read_mask(mask: str | None) -> str | None:
    """Control checks it too; here it becomes a line of a head, where a line break is a hole."""
    return mask if mask is not None and _MASK.fullmatch(mask) else None
