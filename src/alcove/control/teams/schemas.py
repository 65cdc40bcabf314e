"""Bodies of /teams and /api-keys (contract e2b 2.10)."""

from typing import Annotated

from pydantic import BaseModel, StringConstraints

from alcove.control.api import Body, Text

KeyName = Annotated[Text, StringConstraints(min_length=1, max_length=200)]


class Team(BaseModel):
    teamID: str
    name: str
    apiKey: str
    isDefault: bool


class NewKey(Body):
    name: KeyName


class KeyMask(BaseModel):
    prefix: str
    valueLength: int
    maskedValuePrefix: str
    maskedValueSuffix: str


class Key(BaseModel):
    id: str
    name: str
    mask: KeyMask
    createdAt: str
    createdBy: None = None
    lastUsed: str | None = None


class CreatedKey(Key):
    key: str
