"""The life of a sandbox on a node (node/states.py): every event in every state."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.node.states import TRANSITIONS, Effect, Event, InvalidTransitionError, step
from alcove.wire.states import NodeSandboxState as State

POSSIBLE = [(state, event) for state, events in TRANSITIONS.items() for event in events]
IMPOSSIBLE = sorted(set(itertools.product(State, Event)) - set(POSSIBLE))


def test_every_state_has_a_row():
    assert set(TRANSITIONS) == set(State)


@pytest.mark.parametrize(("state", "event"), IMPOSSIBLE)
def test_what_cannot_happen_is_a_bug(state, event):
    with pytest.raises(InvalidTransitionError) as raised:
        step(state, event)
    assert (raised.value.state, raised.value.event) == (state, event)


@pytest.mark.parametrize(("state", "event"), POSSIBLE)
def test_entering_a_state_carries_out_what_it_stands_for(state, event):
    after, effects = step(state, event)
    if after is State.STOPPING and state is not State.STOPPING:
        assert effects == (Effect.CLOSE, Effect.DESTROY)
    if after is State.RUNNING and state is State.STARTING:
        assert effects == (Effect.OPEN, Effect.ANNOUNCE)
    if after is State.RUNNING and state is State.SAVING:
        assert effects[-1] is Effect.GO_ON
    if after is State.SAVING:
        assert effects == (Effect.SAVE,)
    if after is State.STOPPED and state is not State.STOPPED:
        assert effects == (Effect.ANNOUNCE, Effect.RELEASE)


@given(st.lists(st.sampled_from(Event)))
def test_a_life_never_goes_back_but_from_saving_to_running(events):
    order = list(State)
    state = State.STARTING
    for event in events:
        if event not in TRANSITIONS[state]:
            continue
        after, _ = step(state, event)
        back = (state, after) == (State.SAVING, State.RUNNING)
        assert back or order.index(after) >= order.index(state)
        state = after


@given(st.lists(st.sampled_from(Event)))
def test_what_a_save_holds_back_is_undone_or_destroyed(events):
    state, held = State.STARTING, False
    for event in events:
        if event not in TRANSITIONS[state]:
            continue
        state, effects = step(state, event)
        held = (held or Effect.SAVE in effects) and not {Effect.GO_ON, Effect.DESTROY} & set(
            effects
        )
        assert not held or state is State.SAVING


@given(st.lists(st.sampled_from(Event)), st.integers(0, 20))
def test_a_restart_at_any_point_still_ends_in_a_destroyed_sandbox(events, crash_after):
    """Whatever happened before the crash, RESTARTED and STOP lead to DESTROY or to STOPPED."""
    state = State.STARTING
    for event in events[:crash_after]:
        if event in TRANSITIONS[state]:
            state, _ = step(state, event)
    state, effects = step(state, Event.RESTARTED)
    carried_out = set(effects)
    state, effects = step(state, Event.STOP)
    carried_out |= set(effects)
    assert state is State.STOPPED or Effect.DESTROY in carried_out


def test_a_running_sandbox_is_adopted_by_a_restart():
    after, effects = step(State.RUNNING, Event.RESTARTED)
    assert (after, effects) == (State.RUNNING, (Effect.OPEN, Effect.GO_ON))


@pytest.mark.parametrize("event", [Event.STOP, Event.LOST, Event.SAVED_STOP])
def test_a_save_may_end_with_the_sandbox(event):
    assert step(State.SAVING, event) == (State.STOPPING, (Effect.CLOSE, Effect.DESTROY))


@pytest.mark.parametrize("event", [Event.SAVED, Event.NOT_SAVED])
def test_a_sandbox_goes_on_after_a_save_that_was_not_to_stop_it_or_failed(event):
    assert step(State.SAVING, event) == (State.RUNNING, (Effect.GO_ON,))


@pytest.mark.parametrize("event", [Event.SAVE, Event.SAVED, Event.SAVED_STOP, Event.NOT_SAVED])
def test_a_stop_wins_over_a_save(event):
    assert step(State.STOPPING, event) == (State.STOPPING, ())


def test_a_start_that_was_under_way_is_not_trusted():
    after, effects = step(State.STARTING, Event.RESTARTED)
    assert after is State.STOPPING
    assert Effect.DESTROY in effects
