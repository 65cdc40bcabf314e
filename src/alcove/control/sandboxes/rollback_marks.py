"""Guarded changes of rollbacks and resets: the way back when it cannot be, and how to go on."""

from sqlalchemy import update

from alcove.control.db import Tx
from alcove.control.sandboxes import marks
from alcove.control.sandboxes.states import State
from alcove.control.sandboxes.store import Sandbox
from alcove.control.sandboxes.tables import sandboxes


async def mark_as_before(tx: Tx, resuming: Sandbox, before: Sandbox) -> bool:
    """It is what it was: running the same life, or paused in the same state."""
    changed = await tx.execute(
        update(sandboxes)
        .where(marks.unchanged(resuming))
        .values(
            state=before.state.value,
            generation=before.generation if before.state is State.RUNNING else resuming.generation,
            snapshot_id=before.snapshot_id,
            saving_id=None,
            pause_memory=before.pause_memory,
            unresponsive=before.unresponsive,
            boots=before.boots,
            end_at=before.end_at,
        )
    )
    return changed.rowcount == 1


async def mark_reset(tx: Tx, paused: Sandbox) -> bool:
    """Write down with which network and memory a paused sandbox shall start again."""
    changed = await tx.execute(
        update(sandboxes)
        .where(marks.unchanged(paused))
        .values(
            pause_memory=paused.pause_memory,
            network=paused.network,
            public_traffic=paused.public_traffic,
        )
    )
    return changed.rowcount == 1
