"""Bodies of /volumes (contract e2b 2.11, with PPIO's quotas: ppio 2.3)."""

from typing import Annotated

from pydantic import BaseModel, Field

from alcove.control.api import Body, Text

Gibibytes = Annotated[int, Field(ge=1, le=1 << 20)]
Inodes = Annotated[int, Field(ge=16, le=1 << 32)]


class Quota(Body):
    """Body of PATCH /volumes/{id}: what is left out stays."""

    quotaSizeGiB: Gibibytes | None = None
    quotaInodes: Inodes | None = None


class NewVolume(Quota):
    name: Text


class ListedVolume(BaseModel):
    volumeID: str
    name: str


class Volume(ListedVolume):
    token: str
    quotaSizeGiB: float
    quotaInodes: int


class MeasuredVolume(Volume):
    usedSizeBytes: int
    usedInodes: int
