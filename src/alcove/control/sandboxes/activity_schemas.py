"""Bodies of the routes that only PPIO's clients call (contract ppio 2.1)."""

from pydantic import BaseModel

from alcove.control.api import Body
from alcove.control.sandboxes.schemas import Network, Seconds


class Event(BaseModel):
    eventID: str
    recordAt: str
    templateID: str
    templateName: str
    sandboxID: str
    eventName: str
    state: str
    errorMsg: str
    statusCode: int


class Events(BaseModel):
    items: list[Event]
    total: int
    hasMore: bool


class Reset(Body):
    """`secure` is ignored: sandboxes are always secured."""

    resume: bool = True
    timeout: Seconds | None = None
    secure: bool | None = None
    allowPublicTraffic: bool | None = None
    network: Network | None = None


class ResetDone(BaseModel):
    trafficAccessToken: str | None
