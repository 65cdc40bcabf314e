"""The life of a sandbox as control keeps it.

    STARTING ──started──▶ RUNNING ──pause──▶ PAUSING ──paused──▶ PAUSED
        │                  ▲  ▲ ◀──not paused───┘                  │
        │                  │  └───────started─────── RESUMING ◀─resume (also from RUNNING: rollback)
        └──failed──▶ FAILED│                            └──not resumed──▶ PAUSED
                           │
     RUNNING · PAUSING · PAUSED · RESUMING ──stop──▶ STOPPING ──gone──▶ STOPPED
                     RUNNING · PAUSING ──gone (the machine lost it)──▶ STOPPED

STARTING, PAUSING, RESUMING and STOPPING are intents: they are committed before a machine is asked,
and a reconcile step finishes them after a crash. Each life has a generation, which every RESUME
raises; a result is written only for the generation and state it was begun in.
"""

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    RESUMING = "resuming"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


class Event(StrEnum):
    STARTED = "started"
    FAILED = "failed"
    PAUSE = "pause"
    PAUSED = "paused"
    NOT_PAUSED = "not_paused"
    RESUME = "resume"
    NOT_RESUMED = "not_resumed"
    STOP = "stop"
    GONE = "gone"


class IdleAction(StrEnum):
    """What becomes of a sandbox that is idle for as long as its policy says."""

    PAUSE = "pause"
    KILL = "kill"


class ResumeReason(StrEnum):
    """Why a paused sandbox runs again."""

    REQUESTED = "requested"
    TRAFFIC = "traffic"
    RECOVERED = "recovered"
    """Who asked is not known any more: control crashed while it was resumed."""


class InvalidTransitionError(Exception):
    """The event does not fit the state."""


TRANSITIONS: Mapping[State, Mapping[Event, State]] = {
    State.STARTING: {Event.STARTED: State.RUNNING, Event.FAILED: State.FAILED},
    State.RUNNING: {
        Event.PAUSE: State.PAUSING,
        Event.RESUME: State.RESUMING,
        Event.STOP: State.STOPPING,
        Event.GONE: State.STOPPED,
    },
    State.PAUSING: {
        Event.PAUSED: State.PAUSED,
        Event.NOT_PAUSED: State.RUNNING,
        Event.STOP: State.STOPPING,
        Event.GONE: State.STOPPED,
    },
    State.PAUSED: {Event.RESUME: State.RESUMING, Event.STOP: State.STOPPING},
    State.RESUMING: {
        Event.STARTED: State.RUNNING,
        Event.NOT_RESUMED: State.PAUSED,
        Event.STOP: State.STOPPING,
    },
    State.STOPPING: {Event.STOP: State.STOPPING, Event.GONE: State.STOPPED},
    State.STOPPED: {},
    State.FAILED: {},
}

ALIVE = frozenset({State.STARTING, State.RUNNING, State.PAUSING, State.RESUMING, State.STOPPING})
"""States in which a machine may hold something of the sandbox, and the team's limit counts it."""

VISIBLE = frozenset({State.RUNNING, State.PAUSING, State.PAUSED, State.RESUMING})
"""States in which the sandbox is there for its owner."""


def step(state: State, event: Event) -> State:
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise InvalidTransitionError(f"{event} in state {state}") from None


def sources(event: Event) -> list[State]:
    """The states an event may come in: the guard of the update that writes its result."""
    return [state for state, events in TRANSITIONS.items() if event in events]
