"""One context: a language, a directory, and the kernel that keeps its state.

Executions take turns, in the order in which they came. A kernel that ends is replaced; whoever
comes next is told that the state is gone, unless somebody was told as it happened.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from . import environment, messages
from .kernel import Kernel, KernelError, Workshop
from .languages import Language
from .run import Run

_log = logging.getLogger(__name__)

_INTERRUPT_S = (1.0, 2.0, 2.0)
"""How long a kernel has to heed each interrupt; after the last it is killed."""

Write = Callable[[bytes], Awaitable[None]]

NEW_STATE = "The kernel of this context was restarted. Variables, imports and functions are gone."


@dataclass(frozen=True, slots=True)
class Execution:
    code: str
    env_vars: Mapping[str, str]
    token: str | None
    """The request's X-Access-Token."""


class Closed(Exception):  # noqa: N818 -- a state, not a mistake
    """The context was deleted."""


class Context:
    def __init__(
        self, context_id: str, language: Language, cwd: str, workshop: Workshop, envd_port: int
    ) -> None:
        self.id = context_id
        self.language = language
        self.cwd = cwd
        self.lost_state = False
        """Whether the next execution must be told that what came before is gone."""
        self._workshop = workshop
        self._envd_port = envd_port
        self._turn = asyncio.Lock()
        self._starting: asyncio.Task[Kernel] | None = None
        self._revival: asyncio.Task[None] | None = None
        self._kernel: Kernel | None = None
        self._told: str | None = None
        """Which sandbox's variables the kernel has; None before the first execution."""
        self._variables: dict[str, str] = {}
        """What the agent said, as far as the language can hold it."""
        self._unset: dict[str, str] = {}
        """Of these, what the kernel does not have yet."""
        self._used = False
        self._closed = False

    async def ready(self) -> Kernel:
        """The kernel, started if there is none. Raises KernelError, Closed.

        A start goes on when its caller is cancelled: whoever comes next finds the kernel.
        """
        if self._closed:
            raise Closed
        # The signal that tells of its end may be on its way still.
        self._workshop.children.look()
        if self._kernel is not None and not self._kernel.exited.is_set():
            if not self._kernel.leaving:
                return self._kernel
            self._kernel.kill()
        if self._starting is None:
            self._starting = asyncio.get_running_loop().create_task(self._start())
            self._starting.add_done_callback(self._started)
        return await asyncio.shield(self._starting)

    async def _start(self) -> Kernel:
        if self._kernel is not None:
            await self._kernel.finished.wait()
        kernel = Kernel(self._workshop, self.language, self.cwd, self._kernel_ended)
        await kernel.start()
        self._told, self._variables, self._unset = None, {}, {}
        self._kernel = kernel
        if self._closed:  # meanwhile
            kernel.kill()
            raise Closed
        return kernel

    def _started(self, task: "asyncio.Task[Kernel]") -> None:
        self._starting = None
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("the kernel of context %s did not start: %r", self.id, error)

    def _kernel_ended(self, told: bool) -> None:
        """Start another one; unless it never ran, in which case the next one would not either."""
        if self._kernel is None or not self._kernel.finished.is_set() or self._closed:
            return
        self.lost_state = self.lost_state or (self._used and not told)
        self._revival = asyncio.get_running_loop().create_task(self._revive())

    async def _revive(self) -> None:
        with contextlib.suppress(KernelError, Closed):  # logged, and tried again on the next use
            await self.ready()

    async def rehearse(self, write: Write) -> None:
        """Go an execution's way and leave nothing behind; what that needs is in memory then.

        Raises KernelError, Closed.
        """
        async with self._turn:
            kernel = await self.ready()
            await environment.fetch(self._envd_port, None)
            run = kernel.execute(self.language.rehearsal, silent=True, heard=True)
            await self._stopped_with_client(kernel, _hand_on(run, write))

    @property
    def has_kernel(self) -> bool:
        """Whether a kernel was ever started, alive or not."""
        return self._kernel is not None

    async def restart(self) -> None:
        """A new kernel; what runs ends with ContextRestarting. Raises KernelError, Closed."""
        if self._kernel is not None:
            self._kernel.kill()
            await self._kernel.finished.wait()
        self.lost_state = False
        await self.ready()

    def close(self) -> None:
        """End the kernel and take no more work."""
        self._closed = True
        if self._kernel is not None:
            self._kernel.kill()

    async def execute(self, execution: Execution, write: Write) -> None:
        """Run code when its turn comes, and write its output until the end.

        Cancelled, it stops what runs before it gives its turn away.
        """
        async with self._turn:
            try:
                kernel = await self.ready()
            except KernelError as error:
                await write(messages.encode(messages.error("KernelError", str(error))))
                return
            except Closed:
                await write(messages.encode(_gone_error(self.id)))
                return
            self._used = True
            if self.lost_state:
                self.lost_state = False
                await write(messages.encode(messages.note(NEW_STATE)))
            await self._stopped_with_client(kernel, self._run(kernel, execution, write))

    async def _stopped_with_client(self, kernel: Kernel, work: Awaitable[None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            # In a task of its own: in one that was cancelled, Python 3.11.2 takes a timeout
            # for another cancellation.
            await asyncio.wait([asyncio.get_running_loop().create_task(self._stop(kernel))])
            raise

    async def _run(self, kernel: Kernel, execution: Execution, write: Write) -> None:
        await self._learn_variables(execution.token)
        before = self._set_variables(kernel, execution.env_vars)
        run = kernel.execute(execution.code)
        if before is not None:
            await before.done.wait()
            if before.failed is not None and not kernel.exited.is_set():
                value = before.failed["value"]
                await write(
                    messages.encode(messages.note(f"The variables could not be set: {value}"))
                )
        await _hand_on(run, write)
        if execution.env_vars and not (kernel.exited.is_set() or kernel.leaving):
            await self._reset_variables(kernel, execution.env_vars)

    # --- variables

    async def _learn_variables(self, token: str | None) -> None:
        """Ask the agent once in each sandbox's life; what it says waits to be set."""
        identity = environment.identity()
        if self._told == identity:
            return
        values = await environment.fetch(self._envd_port, token)
        if values is None:
            return
        self._told = identity
        self._variables = {k: v for k, v in values.items() if self.language.takes(k)}
        self._unset = dict(self._variables)

    def _set_variables(self, kernel: Kernel, env_vars: Mapping[str, str]) -> Run | None:
        values = {**self._unset, **env_vars}
        self._unset = {}
        code = self.language.change_variables(values)
        return kernel.execute(code, silent=True) if code else None

    async def _reset_variables(self, kernel: Kernel, env_vars: Mapping[str, str]) -> None:
        values = {name: self._variables.get(name) for name in env_vars}
        code = self.language.change_variables(values)
        if code:
            await kernel.execute(code, silent=True).done.wait()

    # --- interrupts

    async def _stop(self, kernel: Kernel) -> None:
        """Interrupt what runs; a kernel that does not heed is replaced."""
        kernel.drop_output()
        for limit_s in _INTERRUPT_S:
            if not kernel.busy:
                return
            await kernel.interrupt()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await kernel.quiet()
        if not kernel.busy:
            return
        _log.warning("context %s ignores interrupts: its kernel is ended", self.id)
        kernel.kill()
        await kernel.finished.wait()


async def _hand_on(run: Run, write: Write) -> None:
    while batch := await run.take():
        await write(batch)


def _gone_error(context_id: str) -> messages.Line:
    return messages.error("ContextNotFound", f"Context {context_id} not found")
