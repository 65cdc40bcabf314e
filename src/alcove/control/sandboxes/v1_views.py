"""How a sandbox's history and its relatives look on the wire of our own routes."""

from typing import Any

from alcove.control.clock import from_seconds, rfc3339
from alcove.control.sandboxes.checkpoints import MOST_TOGETHER, continued
from alcove.control.sandboxes.states import State
from alcove.control.sandboxes.store import Sandbox
from alcove.control.snapshots.catalog import Shown
from alcove.control.snapshots.store import Snapshot
from alcove.wire.node import SandboxReport


def checkpoints_json(sandbox: Sandbox, history: list[Shown]) -> list[dict[str, Any]]:
    """`history`: the snapshots of the sandbox, oldest first."""
    current = continued(history, sandbox.generation, sandbox.snapshot_id)
    return [
        {
            "checkpointID": shown.snapshot_id,
            "snapshotID": shown.public_id,
            "names": shown.names,
            "sandboxID": shown.sandbox_id,
            "parentID": continued(history[:position], shown.generation, shown.parent_id),
            "memory": shown.memory,
            "sizeBytes": shown.size_bytes,
            "createdAt": rfc3339(shown.created_at),
            "current": shown.snapshot_id == current,
        }
        for position, shown in enumerate(history)
    ]


def tree_json(members: list[Sandbox], shown: list[Shown]) -> dict[str, Any]:
    children: dict[str, list[str]] = {}
    for member in members:
        if member.parent_id is not None:
            children.setdefault(member.parent_id, []).append(member.id)
    histories = {member.id: [s for s in shown if s.sandbox_id == member.id] for member in members}
    return {
        "rootID": members[0].root_id,
        "sandboxes": [_member_json(member, children.get(member.id, [])) for member in members],
        "checkpoints": [
            entry for member in members for entry in checkpoints_json(member, histories[member.id])
        ],
        "complete": len(members) < MOST_TOGETHER and len(shown) < MOST_TOGETHER,
    }


def detail_json(
    sandbox: Sandbox, history: list[Shown], report: SandboxReport | None, paused: Snapshot | None
) -> dict[str, Any]:
    """`report`: what its machine says of this life; `paused`: the snapshot it is paused in."""
    return {
        "sandboxID": sandbox.id,
        "templateID": sandbox.template_id,
        "alias": sandbox.alias,
        "state": sandbox.state.value,
        "createdAt": rfc3339(sandbox.created_at),
        "startedAt": rfc3339(sandbox.started_at),
        "endAt": rfc3339(sandbox.end_at),
        "generation": sandbox.generation,
        "boots": sandbox.boots,
        "cpuCount": sandbox.vcpu_count,
        "memoryMB": sandbox.memory_mib,
        "diskSizeMB": sandbox.disk_mib,
        "envdVersion": sandbox.envd_version,
        "metadata": sandbox.metadata,
        "tier": None if report is None else _tier_json(report),
        "policy": _policy_json(sandbox),
        "pause": _pause_json(sandbox, paused),
        "node": None if report is None else _node_json(sandbox, report),
        "rootID": sandbox.root_id,
        "parentID": sandbox.parent_id,
        "originSnapshotID": sandbox.origin_snapshot_id,
        "depth": sandbox.depth,
        "startedFrom": sandbox.snapshot_id,
        "changes": sandbox.changes,
        "checkpoints": checkpoints_json(sandbox, history),
    }


def _member_json(member: Sandbox, children: list[str]) -> dict[str, Any]:
    return {
        "sandboxID": member.id,
        "parentID": member.parent_id,
        "originSnapshotID": member.origin_snapshot_id,
        "depth": member.depth,
        "state": member.state.value,
        "templateID": member.template_id,
        "createdAt": rfc3339(member.created_at),
        "startedAt": rfc3339(member.started_at),
        "stoppedAt": None if member.stopped_at is None else rfc3339(member.stopped_at),
        "stopReason": None if member.stop_reason is None else member.stop_reason.value,
        "children": children,
    }


def _tier_json(report: SandboxReport) -> dict[str, Any]:
    return {
        "name": report.tier.value,
        "reason": report.tier_reason,
        "since": _moment(report.tier_since),
        "activeAt": _moment(report.active_at),
    }


def _policy_json(sandbox: Sandbox) -> dict[str, Any]:
    return {
        "timeout": sandbox.timeout_s,
        "onTimeout": "pause" if sandbox.auto_pause else "kill",
        "autoPauseMemory": sandbox.auto_pause_memory,
        "autoResume": sandbox.auto_resume,
        "idleAfter": sandbox.idle_after_s,
        "idleAction": None if sandbox.idle_action is None else sandbox.idle_action.value,
        "freezeAfter": sandbox.freeze_after_s,
    }


def _pause_json(sandbox: Sandbox, paused: Snapshot | None) -> dict[str, Any] | None:
    if sandbox.state is not State.PAUSED or sandbox.paused_at is None:
        return None
    return {
        "at": rfc3339(sandbox.paused_at),
        "reason": None if sandbox.pause_reason is None else sandbox.pause_reason.value,
        "memory": sandbox.pause_memory,
        "unresponsive": sandbox.unresponsive,
        "sizeBytes": None if paused is None else paused.size_bytes,
    }


def _node_json(sandbox: Sandbox, report: SandboxReport) -> dict[str, Any]:
    return {
        "nodeID": sandbox.node_id,
        "driver": report.driver,
        "isolation": report.isolation,
        "timingsMs": report.timings_ms,
    }


def _moment(at: float | None) -> str | None:
    return None if at is None else rfc3339(from_seconds(at))
