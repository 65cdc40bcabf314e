"""Names that clients give to templates: [namespace/]alias[:tag] (contract e2b 9.1)."""

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from alcove.control.errors import InvalidRequestError
from alcove.control.templates.store import DEFAULT_TAG

_ALIAS = re.compile(r"[a-z0-9_-]+\Z")
_TAG = re.compile(r"[a-z0-9_.-]+\Z")
MAX_LENGTH = 128
_MAX_TAGS = 100


@dataclass(frozen=True, slots=True)
class Name:
    """A name of a team's own template, with the tag it may carry."""

    alias: str
    tag: str | None


def read_name(text: str, slug: str) -> Name:
    """The name of a template of the team called `slug`. Raises InvalidRequestError."""
    whole = text.strip().lower()
    owner, slash, bare = whole.rpartition("/")
    alias, colon, tag = bare.partition(":")
    if len(alias) > MAX_LENGTH or not _ALIAS.match(alias) or (slash and not owner):
        raise InvalidRequestError(
            f"Invalid template name '{text[:80]}': write name[:tag] with letters, digits, '-' and"
            f" '_', at most {MAX_LENGTH} characters"
        )
    if slash and owner != slug:
        raise InvalidRequestError(
            f"Invalid template name '{text[:80]}': the namespace must be your team's, '{slug}'"
        )
    return Name(alias, read_tag(tag) if colon else None)


def read_tag(text: str) -> str:
    """Raises InvalidRequestError."""
    tag = text.strip().lower()
    if len(tag) > MAX_LENGTH or not _TAG.match(tag):
        raise InvalidRequestError(
            f"Invalid tag '{text[:80]}': use letters, digits, '-', '_' and '.', at most"
            f" {MAX_LENGTH} characters, and no template name before it"
        )
    if is_uuid(tag):
        raise InvalidRequestError("Invalid tag: a tag must not be a UUID, which names a build")
    return tag


def read_tags(texts: Sequence[str]) -> list[str]:
    """Each once, in the order given. Raises InvalidRequestError."""
    if len(texts) > _MAX_TAGS:
        raise InvalidRequestError(f"At most {_MAX_TAGS} tags can be given at once")
    return list(dict.fromkeys(map(read_tag, texts)))


def wanted_tags(name: Name, tags: Sequence[str]) -> list[str]:
    """The tags of a new build: that of its name and those given beside it, or the default one."""
    found = ([name.tag] if name.tag else []) + read_tags(tags)
    return list(dict.fromkeys(found)) or [DEFAULT_TAG]


def is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
