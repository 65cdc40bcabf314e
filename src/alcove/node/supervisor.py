"""All sandboxes of this node: what may be asked of them, and who is found at a restart."""

import time
from collections.abc import Callable

import structlog

from alcove.concurrency import spawn
from alcove.node.drivers.driver import Found, Image
from alcove.node.errors import (
    EndedError,
    ImageNotReadyError,
    NoCapacityError,
    NodeBusyError,
    NotHereError,
    OldGenerationError,
    StartFailedError,
)
from alcove.node.ground import Size
from alcove.node.life import Life, Surroundings
from alcove.node.logs import SandboxLog
from alcove.node.places import NO_SLOT
from alcove.node.records import KEPT_STOPPED, Record, surplus
from alcove.node.states import Event
from alcove.wire.ids import BuildId, SandboxId
from alcove.wire.node import LogEntry, SandboxReport, SandboxSpec, SandboxUsage
from alcove.wire.states import NodeSandboxState as State
from alcove.wire.states import StopReason

_log = structlog.get_logger()

_SLACK = 100
"""Records beyond the kept ones that may pile up before they are sorted and dropped."""


class Supervisor:
    """Starts, stops and finds sandboxes. Every call may be repeated."""

    def __init__(self, around: Surroundings, image_of: Callable[[BuildId], Image | None]) -> None:
        self._around = around
        self._image_of = image_of
        self._lives: dict[SandboxId, Life] = {}
        self._ended: dict[SandboxId, Record] = {}

    async def start(self, spec: SandboxSpec) -> SandboxReport:
        """Start a sandbox, or say again how it is if this very life of it was started before.

        It goes on when the caller is cancelled. Raises OldGenerationError, EndedError,
        ImageNotReadyError, NoCapacityError, StartFailedError.
        """
        life = self._lives.get(spec.sandbox_id)
        if life is not None and life.record.spec.generation < spec.generation:
            # Control knows better: what still runs here under that name is of the past.
            await self.stop(spec.sandbox_id, StopReason.KILLED)
            life = self._lives.get(spec.sandbox_id)
        if life is None:
            self._refuse_the_past(spec, self._ended.get(spec.sandbox_id))
            life = self._begin(spec)
        else:
            self._refuse_the_past(spec, life.record)
        record = await life.settled()
        if record.state is State.RUNNING:
            return record.report()
        raise life.no_capacity or _why_not_running(record)

    async def stop(self, sandbox_id: SandboxId, reason: StopReason) -> None:
        """Return once nothing of the sandbox runs; no harm if nothing does."""
        life = self._lives.get(sandbox_id)
        if life is not None:
            life.post(Event.STOP, reason)
            await life.stopped()

    async def stop_all(self, reason: StopReason) -> None:
        lives = list(self._lives.values())
        for life in lives:
            life.post(Event.STOP, reason)
        for life in lives:
            await life.stopped()

    def report(self, sandbox_id: SandboxId) -> SandboxReport:
        life = self._lives.get(sandbox_id)
        record = self._ended.get(sandbox_id) if life is None else life.record
        if record is None:
            raise _not_here(sandbox_id)
        return record.report()

    def reports(self) -> list[SandboxReport]:
        records = [*self._ended.values(), *(life.record for life in self._lives.values())]
        return [record.report() for record in records]

    def running(self, sandbox_id: SandboxId) -> Life | None:
        """The sandbox if it may have traffic."""
        life = self._lives.get(sandbox_id)
        return life if life is not None and life.state is State.RUNNING else None

    def usage(self, sandbox_id: SandboxId) -> SandboxUsage:
        life = self._lives.get(sandbox_id)
        usage = None if life is None else life.usage()
        if usage is None:
            raise _not_here(sandbox_id)
        return usage

    def usages(self) -> dict[SandboxId, SandboxUsage]:
        sampled = {sandbox_id: life.usage() for sandbox_id, life in self._lives.items()}
        return {sandbox_id: usage for sandbox_id, usage in sampled.items() if usage is not None}

    def log(self, sandbox_id: SandboxId, after: int) -> list[LogEntry]:
        life = self._lives.get(sandbox_id)
        if life is not None:
            return life.log.after(after)
        if sandbox_id not in self._ended:
            raise _not_here(sandbox_id)
        return SandboxLog(self._around.records.directory_of(sandbox_id)).after(after)

    @property
    def count(self) -> int:
        """Sandboxes that have, or will have, something running."""
        return len(self._lives)

    def builds(self) -> set[BuildId]:
        """Builds that live sandboxes were started from."""
        return {life.record.spec.build_id for life in self._lives.values()}

    async def adopt(self) -> None:
        """Take over what a former process left; once, before anything is asked.

        Raises NodeBusyError if it was left by another driver.
        """
        for record in self._around.records.read_all():
            if record.state is State.STOPPED:
                self._ended[record.sandbox_id] = record
                continue
            if record.driver != self._around.driver.name:
                raise NodeBusyError(
                    f"sandbox {record.sandbox_id} runs under the driver {record.driver!r}: start "
                    "the node with that driver, or stop all sandboxes first (`alcove down`)"
                )
            life = Life(self._around, record)
            life.post(Event.RESTARTED, StopReason.START_FAILED, "the node restarted meanwhile")
            if record.state is State.RUNNING and not await self._survived(life):
                life.post(Event.LOST, StopReason.NODE_LOST, "it was gone when the node came back")
            self._run(life)
            _log.info("sandbox.adopted", sandbox_id=record.sandbox_id, state=record.state)
        self.forget_old()

    def forget_old(self) -> None:
        """Drop the records of sandboxes that stopped long ago."""
        for sandbox_id in surplus(list(self._ended.values()), time.time()):
            self._ended.pop(sandbox_id)
            self._around.records.remove(sandbox_id)

    def leave(self) -> None:
        """The node ends; its sandboxes run on."""
        for life in self._lives.values():
            life.leave()

    def _begin(self, spec: SandboxSpec) -> Life:
        image = self._image_of(spec.build_id)
        if image is None or image.snapshot is None:
            raise ImageNotReadyError(
                f"build {spec.build_id} of template {spec.template_id} is not ready on this node"
            )
        size = Size(spec.vcpu_count, spec.memory_mib, spec.disk_mib)
        if not self._around.places.has_slot(image, size):
            raise NoCapacityError(NO_SLOT)
        if not self._around.places.has_memory():
            raise NoCapacityError(
                "this node is short of memory: stop sandboxes, or use a larger machine"
            )
        driver = self._around.driver
        record = Record(spec, State.STARTING, driver.name, driver.isolation, time.time())
        self._around.records.remove(spec.sandbox_id)
        self._around.records.write(record)
        self._ended.pop(spec.sandbox_id, None)
        life = Life(self._around, record)
        self._run(life)
        life.begin(image)
        return life

    def _run(self, life: Life) -> None:
        self._lives[life.record.sandbox_id] = life
        spawn(self._attend(life), name=f"life of {life.record.sandbox_id}")

    async def _attend(self, life: Life) -> None:
        await life.run()
        sandbox_id = life.record.sandbox_id
        del self._lives[sandbox_id]
        self._ended[sandbox_id] = life.record
        if len(self._ended) > KEPT_STOPPED + _SLACK:
            self.forget_old()

    async def _survived(self, life: Life) -> bool:
        if life.place is None:
            return False
        return await self._around.driver.find(life.place) is Found.RUNNING

    def _refuse_the_past(self, spec: SandboxSpec, known: Record | None) -> None:
        if known is None or known.spec.generation < spec.generation:
            return
        if known.spec.generation > spec.generation:
            raise OldGenerationError(
                f"generation {known.spec.generation} of {spec.sandbox_id} is known here, "
                f"{spec.generation} was asked for"
            )
        if known.state is State.STOPPED:
            raise _why_not_running(known)


def _why_not_running(record: Record) -> StartFailedError | EndedError:
    if record.stop_reason is StopReason.START_FAILED:
        return StartFailedError(f"the sandbox did not start: {record.detail}")
    return EndedError(
        f"generation {record.spec.generation} of {record.sandbox_id} has ended "
        f"({record.stop_reason}): start a newer one"
    )


def _not_here(sandbox_id: SandboxId) -> NotHereError:
    return NotHereError(f"sandbox {sandbox_id} is not on this node")
