"""The control-side machine of a sandbox."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.control.sandboxes.states import (
    ALIVE,
    TRANSITIONS,
    VISIBLE,
    Event,
    InvalidTransitionError,
    State,
    sources,
    step,
)


@given(st.lists(st.sampled_from(Event), max_size=12))
def test_what_ended_never_lives_again(events: list[Event]) -> None:
    state = State.STARTING
    for event in events:
        try:
            following = step(state, event)
        except InvalidTransitionError:
            continue
        assert state in ALIVE | {State.PAUSED}
        state = following


def test_the_table_is_whole() -> None:
    assert set(TRANSITIONS) == set(State)
    reached = {target for events in TRANSITIONS.values() for target in events.values()}
    assert reached | {State.STARTING} == set(State)
    assert {state for state in State if TRANSITIONS[state]} == ALIVE | {State.PAUSED}


def test_what_its_owner_sees_can_be_ended() -> None:
    assert {state for state in State if Event.STOP in TRANSITIONS[state]} == (
        VISIBLE | {State.STOPPING}
    )


@pytest.mark.parametrize("event", list(Event))
def test_sources_are_where_the_event_fits(event: Event) -> None:
    for state in State:
        if state in sources(event):
            step(state, event)
        else:
            with pytest.raises(InvalidTransitionError):
                step(state, event)
