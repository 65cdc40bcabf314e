"""The life of a sandbox as control keeps it.

    STARTING ──started──▶ RUNNING ──stop──▶ STOPPING ──gone──▶ STOPPED
        │                    └──────────────gone───────────────▲
        └──failed──▶ FAILED

STARTING and STOPPING are intents: they are committed before a machine is asked, and a reconcile
step finishes them after a crash. Each life has a generation; a result is written only for the
generation and state it was begun in.
"""

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


class Event(StrEnum):
    STARTED = "started"
    FAILED = "failed"
    STOP = "stop"
    GONE = "gone"


class InvalidTransitionError(Exception):
    """The event does not fit the state."""


TRANSITIONS: Mapping[State, Mapping[Event, State]] = {
    State.STARTING: {Event.STARTED: State.RUNNING, Event.FAILED: State.FAILED},
    State.RUNNING: {Event.STOP: State.STOPPING, Event.GONE: State.STOPPED},
    State.STOPPING: {Event.STOP: State.STOPPING, Event.GONE: State.STOPPED},
    State.STOPPED: {},
    State.FAILED: {},
}

ALIVE = frozenset({State.STARTING, State.RUNNING, State.STOPPING})
"""States in which a machine may hold something of the sandbox, and the team's limit counts it."""


def step(state: State, event: Event) -> State:
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise InvalidTransitionError(f"{event} in state {state}") from None


def sources(event: Event) -> list[State]:
    """The states an event may come in: the guard of the update that writes its result."""
    return [state for state, events in TRANSITIONS.items() if event in events]
