"""What a machine's report says of one life of a sandbox. Pure functions."""

from alcove.control.sandboxes.store import Sandbox
from alcove.wire.node import SandboxReport
from alcove.wire.states import NodeSandboxState, StopReason


def is_here(sandbox: Sandbox, report: SandboxReport | None) -> bool:
    """The machine has this life of the sandbox, in whatever state."""
    return (
        report is not None
        and report.state is not NodeSandboxState.STOPPED
        and report.generation == sandbox.generation
    )


def is_running(sandbox: Sandbox, report: SandboxReport | None) -> bool:
    return (
        report is not None
        and report.state is NodeSandboxState.RUNNING
        and report.generation == sandbox.generation
    )


def was_paused(sandbox: Sandbox, report: SandboxReport | None) -> bool:
    """The machine saved this life and stopped it."""
    return (
        report is not None
        and report.generation == sandbox.generation
        and report.state is NodeSandboxState.STOPPED
        and report.stop_reason is StopReason.PAUSED
    )


def why_gone(report: SandboxReport | None) -> StopReason:
    """Why a sandbox ended of which there is neither a life nor a snapshot."""
    if report is None or report.stop_reason in {None, StopReason.PAUSED}:
        return StopReason.NODE_LOST
    assert report.stop_reason is not None
    return report.stop_reason
