"""When a template whose build failed is built again: at once, or later and later. Pure."""

from collections.abc import Sequence

from alcove.control.clock import MICROSECONDS
from alcove.control.templates.store import Build
from alcove.wire.node import INTERRUPTED
from alcove.wire.states import BuildState

AT_ONCE = 0
_FIRST_PAUSE_US = 30 * MICROSECONDS
_LONGEST_PAUSE_US = 3600 * MICROSECONDS
_INTERRUPTIONS_FORGIVEN = 3


def next_attempt(builds: Sequence[Build]) -> int | None:
    """The moment of the next build after these (newest first); None while the newest is well."""
    if not builds:
        return AT_ONCE
    newest = builds[0]
    if newest.state is not BuildState.ERROR:
        return None
    failures = 0
    for build in builds:
        if build.state is not BuildState.ERROR or build.ready_at is not None:
            break
        failures += 1
    if newest.reason.startswith(INTERRUPTED) and failures <= _INTERRUPTIONS_FORGIVEN:
        # Somebody stopped Alcove meanwhile. More often, and it may be what stops it.
        return AT_ONCE
    if failures == 0:
        # It was ready and was lost: there is no reason to think that it cannot be built.
        return AT_ONCE
    return newest.updated_at + min(_FIRST_PAUSE_US << (failures - 1), _LONGEST_PAUSE_US)
