"""Names that clients give to snapshots: [namespace/]name[:tag] (contract e2b 9.1)."""

import re
import uuid
from dataclasses import dataclass

from alcove.control.errors import InvalidRequestError
from alcove.control.templates.store import DEFAULT_TAG

_NAME = re.compile(r"(?:([a-z0-9_-]+)/)?([a-z0-9_-]+)(?::([a-z0-9_.-]+))?\Z")
_MAX_LENGTH = 128


@dataclass(frozen=True, slots=True)
class Name:
    alias: str
    tag: str


@dataclass(frozen=True, slots=True)
class Reference:
    """How a client names what exists: by alias or id, all of it or one tag (or build) of it."""

    namespace: str | None
    name: str
    tag: str | None


def read_name(text: str, slug: str) -> Name:
    """The name for a new snapshot of the team called `slug`."""
    found = read_reference(text)
    if found is None:
        raise InvalidRequestError(
            f"Invalid snapshot name '{text[:80]}': write name[:tag] with letters, digits, '-' and "
            f"'_' (and '.' in the tag), each at most {_MAX_LENGTH} characters"
        )
    if found.namespace not in {None, slug}:
        raise InvalidRequestError(
            f"Invalid snapshot name '{text[:80]}': the namespace must be your team's, '{slug}'"
        )
    if found.tag is not None and is_uuid(found.tag):
        raise InvalidRequestError(
            "Invalid snapshot name: a tag must not be a UUID, which names a build"
        )
    return Name(found.name, found.tag or DEFAULT_TAG)


def read_reference(text: str) -> Reference | None:
    match = _NAME.match(text.strip().lower())
    if match is None or any(part and len(part) > _MAX_LENGTH for part in match.groups()):
        return None
    return Reference(match[1], match[2], match[3])


def is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
