"""States that leave a process: what the API, the node's reports and the console call them."""

from enum import StrEnum


class SandboxState(StrEnum):
    """What the public API says of a sandbox (contract e2b 2.6)."""

    RUNNING = "running"
    PAUSED = "paused"


class BuildState(StrEnum):
    """What the public API says of a template build (contract e2b 2.9)."""

    WAITING = "waiting"
    BUILDING = "building"
    READY = "ready"
    ERROR = "error"


class NodeSandboxState(StrEnum):
    """Where a sandbox is in its life on one node (machine: node/states.py)."""

    STARTING = "starting"
    RUNNING = "running"
    SAVING = "saving"
    """A snapshot is being taken; nothing reaches the guest meanwhile."""
    STOPPING = "stopping"
    STOPPED = "stopped"


class IdleTier(StrEnum):
    """How much a running sandbox costs while nobody needs it (docs/reference/idle.md)."""

    ACTIVE = "active"
    QUIET = "quiet"
    """Timers come up to 40 ms late."""
    FROZEN = "frozen"
    """Nothing runs until traffic comes; only where the sandbox's policy allows it."""


class PauseReason(StrEnum):
    """Why a sandbox was paused."""

    REQUESTED = "requested"
    TIMEOUT = "timeout"
    IDLE = "idle"


class StopReason(StrEnum):
    """Why a sandbox is no longer running."""

    KILLED = "killed"
    TIMEOUT = "timeout"
    IDLE = "idle"
    PAUSED = "paused"
    """Its state was saved; only a node says this, and it is no end."""
    RETENTION = "retention"
    """It was paused for longer than paused sandboxes are kept."""
    EXITED = "exited"
    OUT_OF_MEMORY = "out_of_memory"
    START_FAILED = "start_failed"
    NODE_LOST = "node_lost"
