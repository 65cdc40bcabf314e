"""Run code in a sandbox and answer with all it did at once."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from alcove.concurrency import spawn
from alcove.control.api import errors, json_response
from alcove.control.errors import ControlError
from alcove.control.sandboxes import execute_schemas as schemas
from alcove.control.sandboxes.executions import Code, Executed, Executions
from alcove.control.sandboxes.routes import SandboxIdOf
from alcove.control.teams.auth import CallerOf
from alcove.control.teams.service import Caller
from alcove.wire.ids import SandboxId

router = APIRouter(prefix="/v1/sandboxes/{sandbox_id}", tags=["code"])

_GONE = Response(status_code=499)
"""Nobody reads it."""


async def _executions(request: Request) -> Executions:
    executions: Executions = request.app.state.executions
    return executions


ExecutionsOf = Annotated[Executions, Depends(_executions)]


@router.post("/execute", response_model=schemas.Executed, responses=errors(404, 409, 429, 503, 504))
async def execute(
    request: Request,
    caller: CallerOf,
    sandbox_id: SandboxIdOf,
    executions: ExecutionsOf,
    body: schemas.Code,
) -> Response:
    """Run code in the sandbox's code interpreter; the answer comes when it has ended.

    The code is run once and never repeated by the server, and a repeated request runs it again:
    Idempotency-Key has no effect here. A client that goes away interrupts it. A paused sandbox that
    wakes on traffic is woken. Error answers mean that nothing ran, but for execution_cut_off.
    """
    code = Code(
        text=body.code,
        timeout_s=body.timeout,
        language=body.language,
        context_id=body.context_id,
        env=body.env or {},
    )
    work = spawn(_outcome(executions, caller, sandbox_id, code), name="sandbox.execute")
    left = spawn(_left(request), name="sandbox.execute.left")
    try:
        await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        return _answer(work.result()) if work.done() else _GONE
    finally:
        left.cancel()
        work.cancel()
        await asyncio.wait({work, left})


async def _outcome(
    executions: Executions, caller: Caller, sandbox_id: SandboxId, code: Code
) -> Executed | ControlError:
    try:
        return await executions.run(caller, sandbox_id, code)
    except ControlError as error:
        # An expected answer, not a failed task for the log.
        return error


async def _left(request: Request) -> None:
    """Return once the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _answer(executed: Executed | ControlError) -> Response:
    if isinstance(executed, ControlError):
        raise executed
    output = executed.output
    return json_response(
        {
            "stdout": output.stdout,
            "stderr": output.stderr,
            "exit_code": executed.exit_code,
            "error": output.error,
            "results": output.results,
            "execution_count": output.execution_count,
            "truncated": any(output.dropped.values()),
            "dropped": output.dropped,
        }
    )
