"""When failed template builds are tried again."""

from alcove.control.clock import MICROSECONDS
from alcove.control.templates.attempts import AT_ONCE, next_attempt
from alcove.control.templates.store import Build
from alcove.wire.ids import BuildId, NodeId, TemplateId
from alcove.wire.states import BuildState

AT = 1000 * MICROSECONDS


def build(state: BuildState, *, ready_at: int | None = None, reason: str = "") -> Build:
    return Build(
        id=BuildId("b"),
        template_id=TemplateId("t"),
        node_id=NodeId("n"),
        state=state,
        vcpu_count=1,
        memory_mib=1,
        disk_mib=1,
        envd_version="",
        reason=reason,
        created_at=AT,
        updated_at=AT,
        ready_at=ready_at,
        finished_at=None,
    )


FAILED = build(BuildState.ERROR)
LOST = build(BuildState.ERROR, ready_at=AT)
STOPPED = build(BuildState.ERROR, reason="interrupted: the node stopped")


def test_the_first_build_and_one_that_was_lost_begin_at_once() -> None:
    assert next_attempt([]) == AT_ONCE
    assert next_attempt([LOST]) == AT_ONCE
    assert next_attempt([LOST, FAILED, FAILED]) == AT_ONCE


def test_nothing_is_built_while_the_newest_is_well() -> None:
    for state in set(BuildState) - {BuildState.ERROR}:
        assert next_attempt([build(state), FAILED]) is None


def test_failures_in_a_row_are_tried_later_and_later_up_to_an_hour() -> None:
    pauses = []
    for failures in range(1, 21):
        moment = next_attempt([*[FAILED] * failures, LOST, FAILED])
        assert moment is not None
        pauses.append((moment - AT) // MICROSECONDS)
    assert pauses == [30, 60, 120, 240, 480, 960, 1920, *[3600] * 13]


def test_builds_that_were_interrupted_begin_at_once_but_not_for_ever() -> None:
    for times in (1, 2, 3):
        assert next_attempt([*[STOPPED] * times, LOST]) == AT_ONCE
    moment = next_attempt([STOPPED] * 4)
    assert moment is not None
    assert moment > AT
