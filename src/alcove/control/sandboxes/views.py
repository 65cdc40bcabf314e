"""How sandboxes, and what they use, look on the wire."""

from typing import Any

from alcove.control.clock import MICROSECONDS, rfc3339
from alcove.control.sandboxes.egress_proxy import shown as shown_network
from alcove.control.sandboxes.history import Point
from alcove.control.sandboxes.plan import Created
from alcove.control.sandboxes.states import State
from alcove.control.sandboxes.store import Sandbox, public_state
from alcove.wire.ids import CLIENT_ID
from alcove.wire.states import SandboxState


def created_json(created: Created) -> dict[str, Any]:
    sandbox = created.sandbox
    shown: dict[str, Any] = {
        "templateID": sandbox.template_id,
        "sandboxID": sandbox.id,
        "clientID": CLIENT_ID,
        "envdVersion": sandbox.envd_version,
        "envdAccessToken": created.access_token,
        "trafficAccessToken": created.traffic_token,
        "domain": created.domain,
    }
    if sandbox.alias is not None:
        shown["alias"] = sandbox.alias
    return shown


def listed_json(sandbox: Sandbox, now: int) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "templateID": sandbox.template_id,
        "sandboxID": sandbox.id,
        "clientID": CLIENT_ID,
        "startedAt": rfc3339(sandbox.started_at),
        "endAt": rfc3339(sandbox.end_at),
        "cpuCount": sandbox.vcpu_count,
        "memoryMB": sandbox.memory_mib,
        "diskSizeMB": sandbox.disk_mib,
        "metadata": sandbox.metadata,
        "state": _state(sandbox, now).value,
        "envdVersion": sandbox.envd_version,
    }
    if sandbox.alias is not None:
        shown["alias"] = sandbox.alias
    if sandbox.mounts:
        shown["volumeMounts"] = mounts_json(sandbox)
    if sandbox.unresponsive and sandbox.state is State.PAUSED:
        shown["envdUnresponsiveAtPause"] = True
    return shown


def mounts_json(sandbox: Sandbox) -> list[dict[str, str]]:
    return [{"name": mount["name"], "path": path} for path, mount in sandbox.mounts.items()]


def detail_json(created: Created, now: int) -> dict[str, Any]:
    sandbox = created.sandbox
    shown = listed_json(sandbox, now) | {
        "envdAccessToken": created.access_token,
        "allowInternetAccess": sandbox.allow_internet,
        "domain": created.domain,
        "network": shown_network(sandbox.network),
        "lifecycle": {
            "autoResume": sandbox.auto_resume,
            "onTimeout": "pause" if sandbox.auto_pause else "kill",
        },
    }
    if sandbox.state in {State.PAUSING, State.PAUSED}:
        shown["pauseMode"] = "full" if sandbox.pause_memory else "filesystem"
    return shown


def metric_json(point: Point) -> dict[str, Any]:
    return {
        "timestamp": rfc3339(point.at),
        "timestampUnix": point.at // MICROSECONDS,
        "cpuCount": point.cpu_count,
        "cpuUsedPct": point.cpu_used_pct,
        "memUsed": point.mem_used,
        "memTotal": point.mem_total,
        "memCache": point.mem_cache,
        "diskUsed": point.disk_used,
        "diskTotal": point.disk_total,
    }


def _state(sandbox: Sandbox, now: int) -> SandboxState:
    """One that ended while it was looked at is shown as it was."""
    return public_state(sandbox, now) or SandboxState.RUNNING
