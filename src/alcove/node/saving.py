"""One snapshot of a running sandbox, step by step; what goes wrong leaves no file behind.

    room on the disk ─▶ healthy? ─▶ tunnels parted ─▶ (reboot) ─▶ driver ─▶ record
                    └── new connections to the outside are refused ──┘

What is held back on the way stays held back: the life that asked undoes it, as after a crash.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import structlog

from alcove.concurrency import spawn
from alcove.node import metrics, startup
from alcove.node.drivers.driver import Driver, DriverError, Place
from alcove.node.errors import EndedError, GuestUnresponsiveError, NodeError, SaveFailedError
from alcove.node.ground import Ground
from alcove.node.guest_client import GuestClient, GuestError
from alcove.node.guest_commands import GuestCommands
from alcove.node.records import Record
from alcove.node.snapshots import SnapshotRecord, Snapshots
from alcove.node.start import StepFailedError, Timings
from alcove.node.tunnels import Tunnels
from alcove.wire.node import SnapshotReport, SnapshotSpec

_log = structlog.get_logger()

_HEALTHY_S = 1.0
_REBOOT_S = 15.0
_READY_S = 30.0
_PARTING_S = 0.02
"""So long a program inside may take to close a connection that its client has ended."""


@dataclass(slots=True)
class PendingSave:
    """A snapshot that somebody waits for."""

    wanted: SnapshotSpec
    answer: asyncio.Future[SnapshotReport]
    report: SnapshotReport | None = None
    error: NodeError | None = None
    runs_again: bool = False
    """The sandbox goes on, and what was held back for it is undone, before all is written."""

    @property
    def outcome(self) -> metrics.SaveOutcome:
        if self.report is not None:
            return metrics.SaveOutcome.OK
        unresponsive = isinstance(self.error, GuestUnresponsiveError)
        return metrics.SaveOutcome.UNRESPONSIVE if unresponsive else metrics.SaveOutcome.FAILED

    def tell(self) -> None:
        if self.answer.done():
            return
        if self.report is not None:
            self.answer.set_result(self.report)
        else:
            self.answer.set_exception(
                self.error or EndedError("the sandbox was stopped before its snapshot was taken")
            )


@dataclass(frozen=True, slots=True)
class Saver:
    """Takes snapshots. One of a sandbox at a time is its life's to see to."""

    driver: Driver
    ground: Ground
    snapshots: Snapshots

    async def save(
        self, save: PendingSave, record: Record, place: Place, tunnels: Tunnels
    ) -> SnapshotReport:
        """Raises SaveFailedError, GuestUnresponsiveError, BusyError."""
        began = time.perf_counter()
        wanted = save.wanted
        timings = Timings()
        used = self.ground.usage(place)
        with self.snapshots.making(wanted.snapshot_id, used.memory + used.disk) as into:
            try:
                async with self._egress_refused(place) as allow:

                    def running() -> None:
                        tunnels.release()
                        allow()
                        save.runs_again = True

                    responsive = await self._still(wanted, record, place, tunnels, timings)
                    with timings.step("save"):
                        await self.driver.snapshot(place, into, stop=wanted.stop, running=running)
                # The record cannot hold the time that writing it takes.
                timings.ms["total"] = round((time.perf_counter() - began) * 1000, 3)
                with timings.step("record"):
                    report = await self.snapshots.keep(
                        self._record(wanted, record, timings, responsive)
                    )
            except StepFailedError as error:
                if "reboot" in timings.ms:
                    self._start_again(record, place)
                raise SaveFailedError(
                    f"the snapshot could not be taken, and the sandbox runs on: {error}"
                ) from error
        metrics.save_seconds.observe(time.perf_counter() - began)
        _tell(wanted, report, timings)
        return report

    @contextlib.asynccontextmanager
    async def _egress_refused(self, place: Place) -> AsyncIterator[Callable[[], None]]:
        """A connection that is just being opened cannot be saved: none stays so for long.

        Most sandboxes open none, so nothing waits until it is in force. What is yielded allows
        them again.
        """
        ground, done = self.ground, asyncio.Event()

        async def refuse() -> None:
            await ground.refuse_internet(place)
            await done.wait()
            if allowed:
                await ground.allow_internet(place)

        allowed = False

        def allow() -> None:
            nonlocal allowed
            allowed = True
            done.set()

        refusing = spawn(refuse(), name=f"refuse egress of {place.name}")
        try:
            yield allow
        finally:
            # Whoever undoes it otherwise does not come before it is done.
            done.set()
            await asyncio.wait([refusing])

    async def _still(
        self,
        wanted: SnapshotSpec,
        record: Record,
        place: Place,
        tunnels: Tunnels,
        timings: Timings,
    ) -> bool:
        """Bring the sandbox to where it can be saved; whether its agent answers."""
        guest = GuestClient(self.driver, place, record.spec.access_token)
        with timings.step("health"):
            responsive = await _responsive(guest)
        reboots = wanted.stop and not wanted.memory
        if not responsive and (wanted.require_healthy or reboots):
            raise GuestUnresponsiveError(
                f"the agent inside {record.sandbox_id} does not answer: nothing was saved and the "
                "sandbox runs on; try again, or save it without asking for a healthy guest"
            )
        with timings.step("tunnels"):
            await tunnels.drain(_PARTING_S)
        # One that goes on keeps its processes; what is started from the snapshot ends them.
        if reboots:
            with timings.step("reboot"):
                await guest.reboot(_REBOOT_S)
        return responsive

    def _start_again(self, record: Record, place: Place) -> None:
        """The sandbox runs on, and was rebooted: its template's program shall run as before."""
        commands = GuestCommands(self.driver, place, record.spec.access_token)
        sandbox_id = record.sandbox_id

        def say(line: str) -> None:
            _log.info("sandbox.startup", sandbox_id=sandbox_id, line=line)

        again = startup.run(commands, record.origin.startup, say, _READY_S)
        spawn(again, name=f"start command of {sandbox_id}")

    def _record(
        self, wanted: SnapshotSpec, record: Record, timings: Timings, responsive: bool
    ) -> SnapshotRecord:
        spec = record.spec
        report = SnapshotReport(
            snapshot_id=wanted.snapshot_id,
            sandbox_id=spec.sandbox_id,
            generation=spec.generation,
            template_id=spec.template_id,
            build_id=spec.build_id,
            memory=wanted.memory,
            vcpu_count=spec.vcpu_count,
            memory_mib=spec.memory_mib,
            disk_mib=spec.disk_mib,
            driver=self.snapshots.driver_text,
            agent_version=record.origin.agent_version,
            size_bytes=0,
            created_at=time.time(),
            unresponsive=not responsive,
            timings_ms=dict(timings.ms),
        )
        return SnapshotRecord(
            report, record.origin, spec.access_token, wanted.stop, sorted(record.mounted)
        )


def _tell(wanted: SnapshotSpec, report: SnapshotReport, timings: Timings) -> None:
    _log.info(
        "sandbox.saved",
        sandbox_id=wanted.sandbox_id,
        snapshot_id=wanted.snapshot_id,
        size_bytes=report.size_bytes,
        stop=wanted.stop,
        **timings.ms,
    )


async def _responsive(guest: GuestClient) -> bool:
    try:
        await guest.healthy(_HEALTHY_S)
    except (GuestError, DriverError):
        return False
    return True
