"""Bodies of the routes that make snapshots, forks and clones (contract e2b 2.7, ppio 2.1)."""

from typing import Annotated

from pydantic import BaseModel, Field

from alcove.control.api import Body, Error, Text
from alcove.control.sandboxes.schemas import Sandbox, Seconds

Count = Annotated[int, Field(ge=1, le=100)]


class NewSnapshot(Body):
    name: Text | None = None
    memory: bool | None = None


class Commit(Body):
    alias: Text | None = None


class Fork(Body):
    timeout: Seconds = 15
    count: Count = 1


class Clone(Body):
    count: Count = 1
    strict: bool = False
    timeout: Seconds | None = None
    nodeID: Text | None = None


class SnapshotInfo(BaseModel):
    snapshotID: str
    names: list[str]


class ForkResult(BaseModel):
    """Exactly one of the two."""

    sandbox: Sandbox | None = None
    error: Error | None = None


class ClonedSandbox(BaseModel):
    sandboxID: str
    clientID: str
    envdVersion: str
    envdAccessToken: str
    trafficAccessToken: str | None


class Clones(BaseModel):
    sandboxes: list[ClonedSandbox]
    snapshotTemplateId: str
