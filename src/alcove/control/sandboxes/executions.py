"""Runs code in a sandbox's code interpreter for callers who want one answer and no stream.

The interpreter is the sandbox's own server on port 49999 (contract e2b 6), reached through the
node's ingress. Code is run once: nothing here sends it a second time after it was sent.
"""

import asyncio
import json
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpcore

from alcove.control.errors import (
    NO_RETRY,
    RETRY_SOON,
    ConflictError,
    ControlError,
    InvalidRequestError,
    LimitReachedError,
    NotFoundError,
    UnavailableError,
)
from alcove.control.nodes.tunnels import TunnelError, TunnelRefusedError, Tunnels
from alcove.control.sandboxes.outputs import (
    MAX_STREAM_BYTES,
    Gatherer,
    NotAnInterpreterError,
    Output,
    TooMuchOutputError,
)
from alcove.control.sandboxes.plan import Routed
from alcove.control.sandboxes.resumes import Resumes
from alcove.control.sandboxes.service import Sandboxes
from alcove.control.teams.service import Caller
from alcove.wire.errors import ErrorCode
from alcove.wire.hosts import PortOfSandbox
from alcove.wire.ids import SandboxId
from alcove.wire.states import SandboxState

INTERPRETER_PORT = 49999
_AT_ONCE = 64
"""Each holds at most its own bounds (outputs.py) in memory, together 400 MB."""
_TEMPLATE = "code-interpreter-v1"
_MAX_ANSWER_BYTES = 16 * 1024
_OK, _FAILED, _TIMED_OUT = 0, 1, 124
"""Exit codes; the last is that of timeout(1)."""


@dataclass(frozen=True, slots=True)
class Code:
    text: str
    timeout_s: float
    language: str | None = None
    context_id: str | None = None
    env: dict[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        """As the interpreter takes it. Indentation that all lines have is of whoever quoted it."""
        wanted = {
            "code": textwrap.dedent(self.text),
            "language": self.language,
            "context_id": self.context_id,
            "env_vars": self.env or None,
        }
        return json.dumps({k: v for k, v in wanted.items() if v is not None}).encode()


@dataclass(frozen=True, slots=True)
class Executed:
    output: Output
    exit_code: int


class Executions:
    def __init__(self, sandboxes: Sandboxes, resumes: Resumes, tunnels: Tunnels) -> None:
        self._sandboxes = sandboxes
        self._resumes = resumes
        self._tunnels = tunnels
        self._running = 0

    async def run(self, caller: Caller, sandbox_id: SandboxId, code: Code) -> Executed:
        """Run code to its end or its time limit. Cancelled, the code is interrupted.

        Raises ControlError when it could not be run, or what became of it is not known.
        """
        if code.language is not None and code.context_id is not None:
            raise InvalidRequestError("Give language or context_id: a context has its language")
        alias = (await self._sandboxes.get(caller, sandbox_id)).sandbox.alias
        if self._running >= _AT_ONCE:
            raise LimitReachedError(
                f"{_AT_ONCE} executions are being answered by this API already; try again in a "
                f"moment, or run code through port {INTERPRETER_PORT} of the sandbox",
                error_code=ErrorCode.RATE_LIMITED,
                headers=RETRY_SOON,
            )
        self._running += 1
        try:
            return await self._run(sandbox_id, code, alias)
        finally:
            self._running -= 1

    async def _run(self, sandbox_id: SandboxId, code: Code, alias: str | None) -> Executed:
        routed = await self._route(sandbox_id)
        gatherer = Gatherer()
        exit_code = _OK
        error: dict[str, str] | None = None
        try:
            async with (
                asyncio.timeout(code.timeout_s),
                self._answer(routed, code, alias) as answer,
            ):
                async for data in answer.aiter_stream():
                    gatherer.feed(data)
        except TimeoutError:
            exit_code, error = _TIMED_OUT, _timed_out(code.timeout_s)
        except TooMuchOutputError:
            exit_code, error = _FAILED, _too_much()
        except NotAnInterpreterError as other:
            raise _no_interpreter(sandbox_id, alias) from other
        output = gatherer.finish()
        if error is not None:
            output.error = error
        elif not output.ended:
            raise _cut_off(sandbox_id)
        if output.error is not None and exit_code == _OK:
            exit_code = _FAILED
        return Executed(output, exit_code)

    @asynccontextmanager
    async def _answer(
        self, routed: Routed, code: Code, alias: str | None
    ) -> AsyncIterator[httpcore.Response]:
        """The interpreter's stream, once it has begun to run the code."""
        sandbox_id = routed.sandbox_id
        sent = self._tunnels.post(
            routed.node_ingress,
            PortOfSandbox(sandbox_id, INTERPRETER_PORT),
            routed.generation,
            "/execute",
            headers={
                "Host": f"localhost:{INTERPRETER_PORT}",
                "Content-Type": "application/json",
                "X-Access-Token": routed.access_token,
            },
            content=code.body(),
        )
        try:
            async with sent as answer:
                if answer.status != 200:
                    raise await _refusal(answer)
                yield answer
        except TunnelRefusedError as refused:
            raise _refused(refused.status, sandbox_id, alias) from refused
        except TunnelError as error:
            raise _cut_off(sandbox_id) from error

    async def _route(self, sandbox_id: SandboxId) -> Routed:
        """Where it runs; a sandbox that traffic may wake is woken."""
        routed = await self._resumes.route(sandbox_id)
        if routed is not None and routed.state is not SandboxState.RUNNING:
            if not routed.auto_resume:
                raise ConflictError(
                    f'Sandbox "{sandbox_id}" is paused and not resumed by traffic; resume it first'
                )
            routed = await self._resumes.wake(sandbox_id)
        if routed is None:
            raise NotFoundError(f'Sandbox "{sandbox_id}" has ended')
        return routed


def _timed_out(timeout_s: float) -> dict[str, str]:
    return {
        "name": "ExecutionTimeout",
        "value": f"the code did not end within {timeout_s:g} s and was interrupted; variables are "
        "kept. Give a longer timeout if it needs one",
        "traceback": "",
    }


def _too_much() -> dict[str, str]:
    return {
        "name": "TooMuchOutput",
        "value": f"the code wrote more than {MAX_STREAM_BYTES >> 20} MiB of output and was "
        "interrupted; write it to a file and read that",
        "traceback": "",
    }


async def _refusal(answer: httpcore.Response) -> ControlError:
    """What the interpreter says of a request that it does not carry out (contract e2b 6.1)."""
    said = b""
    async for data in answer.aiter_stream():
        said += data
        if len(said) > _MAX_ANSWER_BYTES:
            break
    message = said[:_MAX_ANSWER_BYTES].decode(errors="replace").strip()
    if answer.status == 404:
        return NotFoundError(message or "The context was not found")
    # An unknown language is among what it answers with 500.
    return InvalidRequestError(message or f"The code interpreter answered {answer.status}")


def _refused(status: int, sandbox_id: SandboxId, alias: str | None) -> ControlError:
    match status:
        case 502:
            return _no_interpreter(sandbox_id, alias)
        case 404:
            return UnavailableError(
                f'Sandbox "{sandbox_id}" is being paused, resumed or ended; try again in a moment',
                error_code=ErrorCode.CONFLICT,
            )
        case 429:
            return LimitReachedError(
                f'Sandbox "{sandbox_id}" has too many connections; try again when some have ended',
                error_code=ErrorCode.RATE_LIMITED,
                headers=RETRY_SOON,
            )
        case _:
            return UnavailableError(
                f"The sandbox's node refused the connection ({status}); see `alcove logs node`",
                error_code=ErrorCode.NO_NODE,
                headers=NO_RETRY,
            )


def _no_interpreter(sandbox_id: SandboxId, alias: str | None) -> ControlError:
    made = f"made from template '{alias}'" if alias else "of a template without one"
    return ConflictError(
        f'No code interpreter answers in sandbox "{sandbox_id}", {made}. Create the sandbox from '
        f"template '{_TEMPLATE}', or run commands in this one; if it is of that template, its "
        "interpreter is starting again: try again in some seconds",
        error_code=ErrorCode.NO_INTERPRETER,
    )


def _cut_off(sandbox_id: SandboxId) -> ControlError:
    return UnavailableError(
        f'The connection to sandbox "{sandbox_id}" ended while the code ran, as when it is paused '
        "or ended; whether the code ran to its end is not known",
        error_code=ErrorCode.EXECUTION_CUT_OFF,
        headers=NO_RETRY,
    )
