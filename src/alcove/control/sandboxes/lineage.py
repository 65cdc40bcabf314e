"""Where a sandbox comes from: its place in the tree of those made from each other's snapshots."""

from dataclasses import replace

from alcove.control.db import Tx
from alcove.control.errors import ConflictError
from alcove.control.sandboxes import store
from alcove.control.sandboxes.store import Sandbox
from alcove.control.snapshots import store as snapshots
from alcove.wire.errors import ErrorCode


async def descend(tx: Tx, sandbox: Sandbox) -> Sandbox:
    """A new sandbox that starts from a snapshot, below the one the snapshot shows."""
    if sandbox.snapshot_id is None:
        return sandbox
    snapshot = await snapshots.hold(tx, sandbox.snapshot_id)
    if snapshot is None:
        raise ConflictError(
            "The snapshot is being removed", error_code=ErrorCode.TEMPLATE_NOT_READY
        )
    parent = await store.find(tx, snapshot.sandbox_id)
    return replace(
        sandbox,
        build_id=snapshot.build_id,
        parent_id=snapshot.sandbox_id,
        # A parent that ended long ago is forgotten; its children still have it in common.
        root_id=snapshot.sandbox_id if parent is None else parent.root_id,
        depth=1 if parent is None else parent.depth + 1,
    )
