"""One kernel process: started, spoken to, interrupted, and gone at last.

A restarted context gets a new Kernel. Nothing here runs on a timer while the kernel is idle: its
end is told by SIGCHLD, its messages by the sockets; there is no heartbeat.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import signal
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

from . import messages, reading
from .inbox import Inbox
from .languages import Language
from .processes import Children, signal_group
from .run import Run

_log = logging.getLogger(__name__)

_READY_S = 60.0
_SUBSCRIBED_S = 0.3
_LAST_WORDS_S = 0.05
_LOST_OUTPUT_S = 5.0
_BEHIND_S = 0.5
_OURS = ("MALLOC_", "PYTHONDONTWRITEBYTECODE", "PYTHONNOUSERSITE")
_SAID_BYTES = 4096
LARGEST_MESSAGE_BYTES = 64 * 1024 * 1024

RESTARTED = messages.error("ContextRestarting", "Context was restarted")
LOST = messages.error(
    "OutputLost",
    f"Part of the output did not arrive: a single piece may have {LARGEST_MESSAGE_BYTES >> 20} MiB",
)
ABORTED = messages.error("ExecutionAborted", "Execution was aborted")


class KernelError(Exception):
    """A kernel did not start, or is gone; the message is for the client."""


class Workshop:
    """What all kernels of this server share."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.specs = KernelSpecManager()
        self.sockets = zmq.asyncio.Context()
        # Whatever a kernel has sent must be read: at its own limit it throws output away. Memory is
        # bounded by holding the kernel instead (run.py, Kernel._note_lag).
        self.sockets.setsockopt(zmq.RCVHWM, 0)
        self.sockets.setsockopt(zmq.MAXMSGSIZE, LARGEST_MESSAGE_BYTES)
        self.children = Children()
        self._numbers = itertools.count(1)

    def installed(self) -> set[str]:
        """Names of the kernelspecs."""
        return set(self.specs.find_kernel_specs())

    def connection_file(self) -> Path:
        return self.run_dir / f"kernel-{os.getpid()}-{next(self._numbers)}.json"


class Kernel:
    """`ended` is called once a kernel that was started is gone and all it said was handed on.

    It gets True when somebody was told, or asked for it.
    """

    def __init__(
        self, workshop: Workshop, language: Language, cwd: str, ended: Callable[[bool], None]
    ) -> None:
        self.exited = asyncio.Event()
        self.finished = asyncio.Event()
        """Gone, and all that it said was handed on."""
        self.leaving = False
        """Whether the kernel has said that it will end (exit(), quit())."""
        self._ended = ended
        self._workshop = workshop
        self._file = workshop.connection_file()
        self._cwd = cwd
        self._shows_values = language.shows_values
        self._runs: dict[str, Run] = {}
        self._holds: set[object] = set()
        self._pid = 0
        self._said = bytearray()
        self._tasks: list[asyncio.Task[None]] = []
        installed = workshop.installed()
        self._manager = AsyncKernelManager(
            kernel_name=next(name for name in language.kernels if name in installed),
            kernel_spec_manager=workshop.specs,
            context=workshop.sockets,
            transport=language.transport,
            connection_file=str(self._file),
        )
        # It remembers what it has checked: 65536 signatures, 6 MB a kernel.
        self._manager.session.digest_history_size = 1024
        self._shell: Inbox
        self._iopub: Inbox

    # --- life

    async def start(self) -> None:
        """Answers when code can be run. Raises KernelError."""
        try:
            await self._launch()
            async with asyncio.timeout(_READY_S):
                await self._hear_from_it()
        except TimeoutError as error:
            self.kill()
            raise KernelError(
                f"The kernel did not become ready in {_READY_S:g} s: {self._last_said()}"
            ) from error
        except OSError as error:
            raise KernelError(f"The kernel could not be started: {error}") from error
        except BaseException:
            self.kill()
            raise

    async def _launch(self) -> None:
        nothing = os.open(os.devnull, os.O_RDONLY)
        reading, writing = os.pipe()
        try:
            await self._manager.start_kernel(
                cwd=self._cwd,
                env=_environ(self._cwd),
                # Not one of ours to look after: such a kernel would look for us every second.
                independent=True,
                stdin=nothing,
                stdout=writing,
                stderr=writing,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
            os.close(nothing)
        self._listen_to(reading)
        process: Any = getattr(self._manager.provisioner, "process", None)
        self._pid = process.pid
        self._iopub = self._connect("iopub", self._caught_up)
        self._shell = self._connect("shell")
        self._workshop.children.watch(process.poll, self._exit)
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._read_iopub(), name=f"iopub of {self._pid}"),
            loop.create_task(self._read_shell(), name=f"shell of {self._pid}"),
        ]

    def _connect(self, channel: str, idle: Callable[[], None] | None = None) -> Inbox:
        connect = getattr(self._manager, f"connect_{channel}")
        # The manager's socket is one for asyncio; inbox.py needs no future per message.
        return Inbox(connect(), idle)

    async def _hear_from_it(self) -> None:
        """Until it answers, and until its output channel is heard as well."""
        while True:
            run = self._send("kernel_info_request", {}, silent=True)
            await run.answered.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SUBSCRIBED_S):
                    await run.done.wait()
            if self.exited.is_set():
                raise KernelError(f"The kernel ended while it started: {self._last_said()}")
            if run.idle:
                return
            self._forget(run)

    def _listen_to(self, descriptor: int) -> None:
        """Keep the last of what the process itself prints, to tell why it would not start."""
        loop = asyncio.get_running_loop()

        def read() -> None:
            data = os.read(descriptor, 65536)
            self._said += data
            del self._said[:-_SAID_BYTES]
            if not data:
                loop.remove_reader(descriptor)
                os.close(descriptor)

        loop.add_reader(descriptor, read)

    def _last_said(self) -> str:
        return self._said.decode(errors="replace").strip() or "it said nothing"

    def kill(self) -> None:
        """End it now. Its runs end as the process does."""
        if self._pid and not self.exited.is_set():
            signal_group(self._pid, signal.SIGKILL)
        else:
            self._clean()

    def _exit(self, code: int) -> None:
        _log.info("kernel %s ended with %s", self._pid, code)
        self.exited.set()
        # What it ran in the background must not outlive it unseen.
        signal_group(self._pid, signal.SIGKILL)
        asyncio.get_running_loop().call_later(_LAST_WORDS_S, self._iopub.finish)

    def _clean(self) -> None:
        for path in self._workshop.run_dir.glob(f"{self._file.stem}[.-]*"):
            path.unlink(missing_ok=True)

    # --- work

    def execute(self, code: str, *, silent: bool = False, heard: bool = False) -> Run:
        """Hand code to the kernel, which runs what it is given in order.

        `silent` code leaves no trace, and what it prints is thrown away unless `heard`.
        """
        return self._send(
            "execute_request",
            {
                "code": code,
                "silent": silent,
                "store_history": not silent,
                "user_expressions": {},
                "allow_stdin": False,
                "stop_on_error": not silent,
            },
            silent=silent and not heard,
        )

    def _send(self, kind: str, content: Mapping[str, Any], *, silent: bool) -> Run:
        session = self._manager.session
        message = session.msg(kind, content=dict(content))
        run = Run(message["header"]["msg_id"], self, silent=silent, shows_values=self._shows_values)
        if self.exited.is_set():
            run.finish(RESTARTED)
            return run
        self._runs[run.msg_id] = run
        session.send(self._shell.socket, message)
        self._shell.look()
        return run

    @property
    def busy(self) -> bool:
        return bool(self._runs)

    async def quiet(self) -> None:
        """Wait until nothing runs."""
        for run in list(self._runs.values()):
            await run.done.wait()

    def drop_output(self) -> None:
        """Nobody reads what runs now."""
        for run in self._runs.values():
            run.drop()

    async def interrupt(self) -> None:
        """As Ctrl-C would; the kernel may ignore it."""
        self._holds.clear()
        signal_group(self._pid, signal.SIGCONT)
        if not self.exited.is_set():
            await self._manager.interrupt_kernel()

    def hold(self, why: object = None) -> None:
        """Stop the process until every reason is gone; whatever it is doing waits."""
        if not self._holds and not self.exited.is_set():
            signal_group(self._pid, signal.SIGSTOP)
        self._holds.add(why)

    def let_go(self, why: object = None) -> None:
        if why in self._holds:
            self._holds.discard(why)
            if not self._holds and not self.exited.is_set():
                signal_group(self._pid, signal.SIGCONT)

    # --- what it says

    async def _read_iopub(self) -> None:
        while (frames := await self._iopub.receive()) is not None:
            message = self._parse(frames)
            run = self._runs.get((message.get("parent_header") or {}).get("msg_id", ""))
            if run is None:
                continue
            self._note_lag(message)
            for line in messages.lines(message):
                await run.put(line)
            if (
                message["msg_type"] == "status"
                and message["content"].get("execution_state") == "idle"
            ):
                run.idle = True
                self._settle(run)
        told = self.leaving or any(run.read for run in self._runs.values())
        for run in list(self._runs.values()):
            self._forget(run, RESTARTED)
        self.finished.set()
        self._ended(told)
        self._iopub.close()
        self._shell.close()
        await self._manager.cleanup_resources()
        self._clean()

    async def _read_shell(self) -> None:
        while (frames := await self._shell.receive()) is not None:
            message = self._parse(frames)
            run = self._runs.get((message.get("parent_header") or {}).get("msg_id", ""))
            if run is None:
                continue
            content = message["content"]
            run.answered.set()
            if content.get("status") == "error":
                # Most kernels have said so on iopub already: only the first one counts.
                await run.put(messages.kernel_error(content))
            elif content.get("status") in {"abort", "aborted"}:
                await run.put(ABORTED)
            self.leaving = self.leaving or any(
                piece.get("source") == "ask_exit" for piece in content.get("payload") or []
            )
            self._settle(run)

    def _settle(self, run: Run) -> None:
        """A run is over when the kernel has answered and has said that no output follows."""
        if run.idle and run.answered.is_set():
            self._forget(run)
        else:
            self._expect_more(run)

    def _expect_more(self, run: Run) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(_LOST_OUTPUT_S, self._give_up, run, run.count)

    def _give_up(self, run: Run, count: int) -> None:
        if run.done.is_set():
            return
        if run.waiting or run.count != count:
            self._expect_more(run)
        elif run.idle:
            self._forget(run)  # its output is complete: only the answer never came
        else:
            self._tasks.append(asyncio.get_running_loop().create_task(self._hear_again(run)))

    async def _hear_again(self, run: Run) -> None:
        """ZeroMQ hangs up on a piece that is too large, and never calls again by itself."""
        url = str(self._manager._make_url("iopub"))  # noqa: SLF001 -- nothing public tells it
        with contextlib.suppress(zmq.ZMQError):
            self._iopub.socket.disconnect(url)
        self._iopub.socket.connect(url)
        self._iopub.look()
        with contextlib.suppress(KernelError):
            await self._hear_from_it()
        self._forget(run, LOST)

    def _forget(self, run: Run, *last: messages.Line) -> None:
        self._runs.pop(run.msg_id, None)
        run.finish(*last)

    def _parse(self, frames: list[bytes]) -> dict[str, Any]:
        try:
            return reading.read(frames, self._manager.session)
        except reading.UnreadableError as error:
            _log.warning("a message of kernel %s cannot be read: %s", self._pid, error)
            return {"msg_type": "", "header": {}, "content": {}}

    def _note_lag(self, message: Mapping[str, Any]) -> None:
        """Hold a kernel that talks faster than we listen, until all it has said is read."""
        date = messages.moment(message["header"].get("date"))
        if date is not None and date.tzinfo is not None:
            age_s = (datetime.now(UTC) - date).total_seconds()
            if age_s > _BEHIND_S:
                self.hold("behind")

    def _caught_up(self) -> None:
        self.let_go("behind")


def _environ(cwd: str) -> dict[str, str]:
    """The variables of this process, without those that start.sh gives to it alone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return kept | {"PWD": cwd}
