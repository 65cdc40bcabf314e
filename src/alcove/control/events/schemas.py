"""Body of GET /v1/events."""

from typing import Any

from pydantic import BaseModel


class Event(BaseModel):
    id: int
    timestamp: str
    type: str
    sandboxID: str
    data: dict[str, Any]
