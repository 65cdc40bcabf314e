"""Tables that describe protobuf messages, and their JSON form (proto3 JSON mapping).

Inside a process a message is a plain dict: lowerCamelCase keys, unset fields absent, `bytes` fields
as Python bytes, enums as names, timestamps as RFC 3339 text, 64-bit numbers as int or decimal text.
`from_json` brings what a client sent into that shape; protobuf.py does the same for binary.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class MalformedMessageError(ValueError):
    """What a client sent is not a message of the wanted type; args[0] says where and why."""


class Kind(Enum):
    STRING = "string"
    BYTES = "bytes"
    BOOL = "bool"
    UINT32 = "uint32"
    SINT32 = "sint32"
    INT64 = "int64"
    ENUM = "enum"
    MESSAGE = "message"
    TIMESTAMP = "timestamp"
    STRING_MAP = "map<string, string>"


@dataclass(frozen=True, slots=True)
class Field:
    number: int
    name: str
    """lowerCamelCase."""
    kind: Kind
    message: "Message | None" = None
    """Of a field of kind MESSAGE."""
    values: Mapping[str, int] = field(default_factory=dict)
    """Names and numbers of a field of kind ENUM."""
    repeated: bool = False
    oneof: str | None = None
    """At most one field of the same `oneof` is set."""
    optional: bool = False
    """Presence is kept: a zero value is sent (as are those of a oneof)."""


@dataclass(frozen=True)
class Message:
    """One message type."""

    name: str
    fields: tuple[Field, ...] = ()
    by_number: Mapping[int, Field] = field(init=False, repr=False, compare=False)
    by_name: Mapping[str, Field] = field(init=False, repr=False, compare=False)
    """By lowerCamelCase and by snake_case name: proto3 JSON admits both."""

    def __post_init__(self) -> None:
        by_name = {_snake(f.name): f for f in self.fields} | {f.name: f for f in self.fields}
        object.__setattr__(self, "by_number", {f.number: f for f in self.fields})
        object.__setattr__(self, "by_name", by_name)


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC: its path and what it takes and gives."""

    path: str
    request: Message
    response: Message


def parse_json(message: Message, text: bytes) -> dict[str, Any]:
    """Read a message sent as JSON; nothing at all is an empty message.

    Raises MalformedMessageError.
    """
    try:
        value = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise MalformedMessageError(f"the message is not valid JSON: {error}") from error
    return from_json(message, value)


def to_json(value: Mapping[str, Any]) -> bytes:
    """Write a message as JSON."""
    return json.dumps(value, separators=(",", ":"), default=_base64).encode()


def from_json(message: Message, value: Any) -> dict[str, Any]:
    """Check a JSON value against a message type. Unknown fields are dropped."""
    if not isinstance(value, dict):
        raise MalformedMessageError(f"{message.name} must be a JSON object")
    result: dict[str, Any] = {}
    chosen: dict[str, str] = {}
    for key, item in value.items():
        known = message.by_name.get(key)
        if known is None or item is None:
            continue
        if known.oneof is not None and chosen.setdefault(known.oneof, known.name) != known.name:
            raise MalformedMessageError(
                f"{message.name} has both {chosen[known.oneof]} and {known.name}; send one of them"
            )
        result[known.name] = _field_from_json(message, known, item)
    return result


def _field_from_json(message: Message, known: Field, item: Any) -> Any:
    where = f"{message.name}.{known.name}"
    if not known.repeated:
        return _value_from_json(where, known, item)
    if not isinstance(item, list):
        raise MalformedMessageError(f"{where} must be a list")
    return [_value_from_json(where, known, element) for element in item]


def _value_from_json(where: str, known: Field, item: Any) -> Any:
    match known.kind:
        case Kind.MESSAGE:
            assert known.message is not None
            return from_json(known.message, item)
        case Kind.STRING | Kind.TIMESTAMP:
            return _text(where, item)
        case Kind.BOOL:
            if not isinstance(item, bool):
                raise MalformedMessageError(f"{where} must be true or false")
            return item
        case Kind.BYTES:
            return _bytes(where, item)
        case Kind.ENUM:
            return _enum(where, known.values, item)
        case Kind.STRING_MAP:
            if not isinstance(item, dict):
                raise MalformedMessageError(f"{where} must be an object of texts")
            return {
                _text(where, name): _text(f"{where}.{name}", text) for name, text in item.items()
            }
        case _:
            return _integer(where, known.kind, item)


def _text(where: str, item: Any) -> str:
    if not isinstance(item, str):
        raise MalformedMessageError(f"{where} must be a text")
    try:
        item.encode()
    except UnicodeEncodeError as error:
        raise MalformedMessageError(f"{where} is not valid Unicode") from error
    return item


def _bytes(where: str, item: Any) -> bytes:
    text = _text(where, item).translate(_URL_SAFE).rstrip("=")
    try:
        return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except ValueError as error:
        raise MalformedMessageError(f"{where} is not base64: {error}") from error


def _enum(where: str, values: Mapping[str, int], item: Any) -> str | int:
    if isinstance(item, str) and item in values:
        return item
    if isinstance(item, int) and not isinstance(item, bool):
        return enum_name(values, item)
    raise MalformedMessageError(f"{where} must be one of {', '.join(values)}")


def enum_name(values: Mapping[str, int], number: int) -> str | int:
    """The name of an enum's number, or the number itself if this version does not know it."""
    return next((name for name, known in values.items() if known == number), number)


_RANGES = {
    Kind.UINT32: (0, 2**32 - 1),
    Kind.SINT32: (-(2**31), 2**31 - 1),
    Kind.INT64: (-(2**63), 2**63 - 1),
}


def _integer(where: str, kind: Kind, item: Any) -> int:
    number: int | None = None
    if isinstance(item, int) and not isinstance(item, bool):
        number = item
    elif (isinstance(item, float) and item.is_integer()) or (
        isinstance(item, str) and len(item) <= 20 and item.removeprefix("-").isdecimal()
    ):
        number = int(item)
    low, high = _RANGES[kind]
    if number is None or not low <= number <= high:
        raise MalformedMessageError(f"{where} must be a whole number from {low} to {high}")
    return number


_URL_SAFE = str.maketrans("-_", "+/")


def _base64(value: Any) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
