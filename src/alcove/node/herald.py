"""Says what happens to one sandbox: in its log, to those who follow events, in the metrics."""

import time
from dataclasses import dataclass

import structlog

from alcove.node import metrics
from alcove.node.events import Events
from alcove.node.guest_client import EndedProcess
from alcove.node.logs import SandboxLog
from alcove.node.records import Record
from alcove.wire.ids import SandboxId
from alcove.wire.states import StopReason

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Herald:
    sandbox_id: SandboxId
    log: SandboxLog
    events: Events

    def running(self, record: Record) -> None:
        metrics.starts.labels(metrics.Outcome.OK).inc()
        kind = metrics.StartKind.of(record.timings_ms)
        metrics.start_seconds.labels(kind).observe(record.timings_ms["total"] / 1000)
        self.events.emit("sandbox.running", self.sandbox_id)
        self.log.add(time.time(), "info", "sandbox started", slot=str(record.slot))
        _log.info("sandbox.started", sandbox_id=self.sandbox_id, **record.timings_ms)

    def stopped(self, record: Record) -> None:
        reason = record.stop_reason or StopReason.KILLED
        metrics.stops.labels(reason).inc()
        if reason is StopReason.START_FAILED:
            metrics.starts.labels(metrics.Outcome.FAILED).inc()
        self.events.emit("sandbox.stopped", self.sandbox_id, reason=reason, detail=record.detail)
        bad = reason in {StopReason.START_FAILED, StopReason.OUT_OF_MEMORY}
        text = f"sandbox stopped: {reason}" + (f": {record.detail}" if record.detail else "")
        self.log.add(time.time(), "error" if bad else "info", text)
        _log.info("sandbox.stopped", sandbox_id=self.sandbox_id, reason=reason)

    def idle(self, seconds: float) -> None:
        self.log.add(time.time(), "info", f"nothing has gone on for {seconds:.0f} s")
        self.events.emit("sandbox.idle", self.sandbox_id, detail=f"{seconds:.0f}")

    def relief(self, ended: EndedProcess | None) -> None:
        """Memory was running out; what was ended to relieve it, if anything."""
        if ended is None:
            text = (
                "memory is held by files in memory (/dev/shm), not by processes: remove some "
                "before the sandbox ends for want of memory"
            )
            self.log.add(time.time(), "warn", text)
            return
        metrics.processes_ended.inc()
        text = (
            f"process {ended.pid} ({ended.command}) used {ended.rss_bytes // 2**20} MiB and was "
            "ended: the sandbox was running out of memory"
        )
        self.log.add(time.time(), "warn", text)
        self.events.emit(
            "sandbox.process_ended",
            self.sandbox_id,
            reason=StopReason.OUT_OF_MEMORY,
            detail=text,
        )
