"""Our own routes about one sandbox: what it is, its tree, its checkpoints, rollback."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from alcove.control.api import Text, errors, json_response
from alcove.control.sandboxes import schemas, v1_schemas, v1_views, views
from alcove.control.sandboxes.checkpoints import Checkpoints, no_such_checkpoint
from alcove.control.sandboxes.fork_routes import CheckpointsOf
from alcove.control.sandboxes.rollbacks import Rollbacks
from alcove.control.sandboxes.routes import SandboxIdOf
from alcove.control.teams.auth import CallerOf
from alcove.control.teams.service import Caller
from alcove.wire.ids import SandboxId

router = APIRouter(prefix="/v1/sandboxes/{sandbox_id}", tags=["time travel"])


async def _rollbacks(request: Request) -> Rollbacks:
    rollbacks: Rollbacks = request.app.state.rollbacks
    return rollbacks


RollbacksOf = Annotated[Rollbacks, Depends(_rollbacks)]


@router.get("", response_model=v1_schemas.Detail, responses=errors(404))
async def detail(caller: CallerOf, sandbox_id: SandboxIdOf, checkpoints: CheckpointsOf) -> Response:
    """All there is to know of a sandbox, also of one that has ended, while it is remembered."""
    sandbox, history = await checkpoints.history(caller, sandbox_id)
    report, paused = await checkpoints.whereabouts(sandbox)
    return json_response(v1_views.detail_json(sandbox, history, report, paused))


@router.get("/tree", response_model=v1_schemas.Tree, responses=errors(404))
async def tree(caller: CallerOf, sandbox_id: SandboxIdOf, checkpoints: CheckpointsOf) -> Response:
    """The whole tree the sandbox is in: who was made from whose snapshot, and all checkpoints."""
    members, shown = await checkpoints.family(caller, sandbox_id)
    return json_response(v1_views.tree_json(members, shown))


@router.get("/checkpoints", response_model=list[v1_schemas.Checkpoint], responses=errors(404))
async def list_checkpoints(
    caller: CallerOf, sandbox_id: SandboxIdOf, checkpoints: CheckpointsOf
) -> Response:
    """The snapshots of the sandbox, oldest first."""
    sandbox, history = await checkpoints.history(caller, sandbox_id)
    return json_response(v1_views.checkpoints_json(sandbox, history))


@router.post(
    "/checkpoints",
    status_code=201,
    response_model=v1_schemas.Checkpoint,
    responses=errors(404, 409, 503, 504),
)
async def create_checkpoint(
    caller: CallerOf,
    sandbox_id: SandboxIdOf,
    checkpoints: CheckpointsOf,
    body: v1_schemas.NewCheckpoint | None = None,
) -> Response:
    """Take a snapshot of the sandbox, which goes on."""
    wanted = body or v1_schemas.NewCheckpoint()
    shown = await checkpoints.create(
        caller, sandbox_id, wanted.name, memory=wanted.memory is not False
    )
    return await _one(checkpoints, caller, sandbox_id, shown.snapshot_id)


@router.delete("/checkpoints/{checkpoint:path}", status_code=204, responses=errors(404))
async def delete_checkpoint(
    caller: CallerOf, sandbox_id: SandboxIdOf, checkpoint: Text, checkpoints: CheckpointsOf
) -> Response:
    """Delete a snapshot of the sandbox; refused (400) while sandboxes made from it exist."""
    await checkpoints.delete_of(caller, sandbox_id, checkpoint)
    return Response(status_code=204)


@router.post(
    "/rollback",
    status_code=201,
    response_model=schemas.Sandbox,
    responses=errors(404, 409, 429, 503, 504),
)
async def rollback(
    caller: CallerOf, sandbox_id: SandboxIdOf, rollbacks: RollbacksOf, body: v1_schemas.Rollback
) -> Response:
    """Make the running or paused sandbox what a checkpoint of it shows; same id and tokens."""
    created = await rollbacks.rollback(caller, sandbox_id, body.checkpoint, body.timeout)
    return json_response(views.created_json(created), 201)


async def _one(
    checkpoints: Checkpoints, caller: Caller, sandbox_id: SandboxId, checkpoint_id: str
) -> Response:
    sandbox, history = await checkpoints.history(caller, sandbox_id)
    for entry in v1_views.checkpoints_json(sandbox, history):
        if entry["checkpointID"] == checkpoint_id:
            return json_response(entry, 201)
    raise no_such_checkpoint(sandbox_id, checkpoint_id)
