"""Bodies of /v1/sandboxes/{id}/egress."""

from typing import Annotated, Any

from pydantic import BaseModel, Field

from alcove.control.api import MAX_INT64, Body


class Watch(Body):
    """What is recorded and counted from now on; what is left out is not."""

    record: bool = False
    maxRequests: Annotated[int, Field(ge=1, le=MAX_INT64)] | None = None
    maxBytes: Annotated[int, Field(ge=1, le=MAX_INT64)] | None = None


class Entry(BaseModel):
    """A connection, or a request where TLS ends outside the sandbox."""

    sequence: int
    at: str
    host: str | None = None
    address: str | None = None
    port: int
    protocol: str
    method: str | None = None
    status: int | None = None
    sent: int
    received: int
    refused: str | None = None


class Log(BaseModel):
    """The newest entries, oldest first, and what all there ever were come to."""

    entries: list[Entry]
    requests: int
    sent: int
    received: int
    leftOut: int
    watch: dict[str, Any]


class Proposal(BaseModel):
    """For `network` of a create, or PUT /sandboxes/{id}/network."""

    allowOut: list[str]
    denyOut: list[str]
    complete: bool
    """False: more was seen than is remembered."""
