"""The life of one sandbox on one node.

    STARTING ──ready──▶ RUNNING ◀──saved · not saved── SAVING
        │                │   └───────────save───────────▶ │
        │ failed · stop  │ stop · lost                    │ saved and stop · stop · lost
        ▼                ▼                                ▼
        └──────────▶ STOPPING ◀───────────────────────────┘
                         │
                         │ gone
                         ▼
                      STOPPED

Everything that may change a sandbox's state is in this file and nothing else is: no clock, no
I/O. A life feeds events in, writes the new state down, and carries the effects out. RESTARTED is
fed first to every life found on disk when the node starts: whatever was under way is done again.
"""

from collections.abc import Mapping
from enum import StrEnum

from alcove.wire.states import NodeSandboxState as State


class Event(StrEnum):
    RESTARTED = "restarted"
    """The node came back and found the record in this state."""
    READY = "ready"
    """The guest answers and is initialised."""
    FAILED = "failed"
    """The start did not work; nothing of it may stay."""
    SAVE = "save"
    """A snapshot is wanted."""
    SAVED = "saved"
    """It is on the disk, and the sandbox goes on."""
    SAVED_STOP = "saved_stop"
    """It is on the disk, and the sandbox is to stop in the moment that was saved."""
    NOT_SAVED = "not_saved"
    STOP = "stop"
    LOST = "lost"
    """The instance ended by itself."""
    GONE = "gone"
    """Nothing of the instance runs any more."""


class Effect(StrEnum):
    OPEN = "open"
    """Watch the instance, admit traffic."""
    SAVE = "save"
    """Hold traffic back and take the snapshot; answers with SAVED, SAVED_STOP or NOT_SAVED."""
    GO_ON = "go_on"
    """Undo what a save has held back; nothing if there was none."""
    CLOSE = "close"
    """Give up the start or save under way, refuse traffic, cut what is connected."""
    DESTROY = "destroy"
    """End the instance; answers with GONE."""
    ANNOUNCE = "announce"
    """Tell those who wait, and the event stream."""
    RELEASE = "release"
    """Give the place back, off everybody's path."""


Step = tuple[State, tuple[Effect, ...]]


class InvalidTransitionError(Exception):
    """The event cannot happen in this state: a bug in the caller."""

    def __init__(self, state: State, event: Event) -> None:
        super().__init__(f"event {event} is impossible in state {state}")
        self.state = state
        self.event = event


_DESTROY: Step = (State.STOPPING, (Effect.CLOSE, Effect.DESTROY))

TRANSITIONS: Mapping[State, Mapping[Event, Step]] = {
    State.STARTING: {
        # Who asked for it has lost its connection and will ask again: begin anew, do not guess.
        Event.RESTARTED: _DESTROY,
        Event.READY: (State.RUNNING, (Effect.OPEN, Effect.ANNOUNCE)),
        Event.FAILED: _DESTROY,
        Event.STOP: _DESTROY,
    },
    State.RUNNING: {
        # What a save held back may not have been undone.
        Event.RESTARTED: (State.RUNNING, (Effect.OPEN, Effect.GO_ON)),
        Event.SAVE: (State.SAVING, (Effect.SAVE,)),
        Event.STOP: _DESTROY,
        Event.LOST: _DESTROY,
    },
    State.SAVING: {
        # If the snapshot was to stop it and is complete, the node stops it next.
        Event.RESTARTED: (State.RUNNING, (Effect.OPEN, Effect.GO_ON)),
        Event.SAVED: (State.RUNNING, (Effect.GO_ON,)),
        Event.NOT_SAVED: (State.RUNNING, (Effect.GO_ON,)),
        Event.SAVED_STOP: _DESTROY,
        Event.STOP: _DESTROY,
        Event.LOST: _DESTROY,
    },
    State.STOPPING: {
        Event.RESTARTED: _DESTROY,
        # The outcome of a start or a save, or the end of an instance, may cross a stop.
        Event.READY: (State.STOPPING, ()),
        Event.FAILED: (State.STOPPING, ()),
        Event.SAVE: (State.STOPPING, ()),
        Event.SAVED: (State.STOPPING, ()),
        Event.SAVED_STOP: (State.STOPPING, ()),
        Event.NOT_SAVED: (State.STOPPING, ()),
        Event.STOP: (State.STOPPING, ()),
        Event.LOST: (State.STOPPING, ()),
        Event.GONE: (State.STOPPED, (Effect.ANNOUNCE, Effect.RELEASE)),
    },
    State.STOPPED: {
        Event.RESTARTED: (State.STOPPED, ()),
        Event.STOP: (State.STOPPED, ()),
        Event.LOST: (State.STOPPED, ()),
    },
}


def step(state: State, event: Event) -> Step:
    """The state after `event` and what must be done for it, in order."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise InvalidTransitionError(state, event) from None
