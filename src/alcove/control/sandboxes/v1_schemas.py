"""Bodies of our own routes about one sandbox: detail, tree, checkpoints, rollback."""

from typing import Any

from pydantic import BaseModel

from alcove.control.api import Body, Text
from alcove.control.sandboxes.schemas import Seconds
from alcove.control.sandboxes.states import State
from alcove.wire.states import IdleTier


class NewCheckpoint(Body):
    name: Text | None = None
    memory: bool | None = None


class Rollback(Body):
    checkpoint: Text
    timeout: Seconds | None = None


class Checkpoint(BaseModel):
    checkpointID: str
    snapshotID: str
    names: list[str]
    sandboxID: str
    parentID: str | None
    memory: bool
    sizeBytes: int
    createdAt: str
    current: bool


class Tier(BaseModel):
    name: IdleTier
    reason: str
    since: str | None
    activeAt: str | None


class Policy(BaseModel):
    timeout: int
    onTimeout: str
    autoPauseMemory: bool
    autoResume: bool
    idleAfter: int | None
    idleAction: str | None
    freezeAfter: int | None


class Pause(BaseModel):
    at: str
    reason: str | None
    memory: bool
    unresponsive: bool
    sizeBytes: int | None


class Node(BaseModel):
    nodeID: str
    driver: str
    isolation: str
    timingsMs: dict[str, float]


class Member(BaseModel):
    """One sandbox of a tree."""

    sandboxID: str
    parentID: str | None
    originSnapshotID: str | None
    depth: int
    state: State
    templateID: str
    createdAt: str
    startedAt: str
    stoppedAt: str | None
    stopReason: str | None
    children: list[str]


class Tree(BaseModel):
    rootID: str
    sandboxes: list[Member]
    checkpoints: list[Checkpoint]
    complete: bool


class Detail(BaseModel):
    sandboxID: str
    templateID: str
    alias: str | None
    state: State
    createdAt: str
    startedAt: str
    endAt: str
    generation: int
    boots: int
    cpuCount: int
    memoryMB: int
    diskSizeMB: int
    envdVersion: str
    metadata: dict[str, str]
    tier: Tier | None
    policy: Policy
    pause: Pause | None
    node: Node | None
    rootID: str
    parentID: str | None
    originSnapshotID: str | None
    depth: int
    startedFrom: str | None
    changes: dict[str, Any]
    checkpoints: list[Checkpoint]
