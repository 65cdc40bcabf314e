"""Guarded changes of rollbacks and resets: their intent, and the way back when it cannot be."""

from sqlalchemy import update

from alcove.control.db import Tx
from alcove.control.sandboxes import marks
from alcove.control.sandboxes.states import State
from alcove.control.sandboxes.store import Sandbox
from alcove.control.sandboxes.tables import sandboxes


async def mark_rolling_back(tx: Tx, before: Sandbox, resuming: Sandbox) -> bool:
    """Write the intent; a paused sandbox's own snapshot is kept as `saving_id` meanwhile."""
    if not await marks.mark_resuming(tx, before, resuming):
        return False
    kept = before.snapshot_id if before.state is State.PAUSED else None
    # Where it is paused if it does not start: at the checkpoint, with the memory that one has.
    values = {"saving_id": kept, "pause_memory": resuming.pause_memory}
    await tx.execute(update(sandboxes).where(sandboxes.c.id == before.id).values(**values))
    return True


async def mark_as_before(tx: Tx, resuming: Sandbox, before: Sandbox) -> bool:
    """It is what it was: running the same life, or paused in the same state."""
    changed = await tx.execute(
        update(sandboxes)
        .where(
            sandboxes.c.id == resuming.id,
            sandboxes.c.generation == resuming.generation,
            sandboxes.c.state == State.RESUMING.value,
        )
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
        .where(
            sandboxes.c.id == paused.id,
            sandboxes.c.generation == paused.generation,
            sandboxes.c.state == State.PAUSED.value,
        )
        .values(
            pause_memory=paused.pause_memory,
            network=paused.network,
            public_traffic=paused.public_traffic,
        )
    )
    return changed.rowcount == 1
