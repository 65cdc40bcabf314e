"""The binary form of the messages described in messages.py (proto3 encoding).

Unknown fields are skipped; lengths, numbers and text are checked before anything is allocated.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from alcove.wire.messages import Field, Kind, MalformedMessageError, Message, enum_name

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_NUMBERS = {Kind.BOOL, Kind.UINT32, Kind.SINT32, Kind.INT64, Kind.ENUM}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NANOS_PER_S = 10**9


def encode(message: Message, value: Mapping[str, Any]) -> bytes:
    """Write a message. Keys the message type does not have are left out."""
    out = bytearray()
    for known in message.fields:
        item = value.get(known.name)
        if item is None:
            continue
        if known.kind is Kind.STRING_MAP:
            for key, text in item.items():
                pair = _tagged_text(1, key) + _tagged_text(2, text)
                out += _tag(known.number, _LENGTH) + _sized(pair)
        elif known.repeated:
            for element in item:
                out += _encode_field(known, element)
        elif item or _keeps_zero(known):
            out += _encode_field(known, item)
    return bytes(out)


def decode(message: Message, data: bytes) -> dict[str, Any]:
    """Read a message. Raises MalformedMessageError."""
    result: dict[str, Any] = {}
    for number, wire_type, raw in _fields(message.name, data):
        known = message.by_number.get(number)
        if known is None:
            continue
        where = f"{message.name}.{known.name}"
        expected = _VARINT if known.kind in _NUMBERS else _LENGTH
        if known.repeated and expected == _VARINT and wire_type == _LENGTH:
            result.setdefault(known.name, []).extend(_packed(where, known, raw))
            continue
        if wire_type != expected:
            raise MalformedMessageError(f"{where} has wire type {wire_type}, not {expected}")
        _store(result, message, known, _decode_value(where, known, raw))
    return result


def _keeps_zero(known: Field) -> bool:
    return known.optional or known.oneof is not None or known.kind is Kind.MESSAGE


def _encode_field(known: Field, item: Any) -> bytes:
    if known.kind in _NUMBERS:
        return _tag(known.number, _VARINT) + _varint(_to_number(known, item))
    return _tag(known.number, _LENGTH) + _sized(_to_bytes(known, item))


def _to_number(known: Field, item: Any) -> int:
    if known.kind is Kind.ENUM and isinstance(item, str):
        return known.values[item]
    number = int(item)
    if known.kind is Kind.SINT32:
        return (number << 1) ^ (number >> 31)
    return number & (2**64 - 1)


def _to_bytes(known: Field, item: Any) -> bytes:
    match known.kind:
        case Kind.MESSAGE:
            assert known.message is not None
            return encode(known.message, item)
        case Kind.BYTES:
            return bytes(item)
        case Kind.TIMESTAMP:
            return _encode_timestamp(item)
        case _:
            return str(item).encode()


def _store(result: dict[str, Any], message: Message, known: Field, value: Any) -> None:
    if known.kind is Kind.STRING_MAP:
        result.setdefault(known.name, {}).update(value)
    elif known.repeated:
        result.setdefault(known.name, []).append(value)
    else:
        if known.oneof is not None:  # the last one on the wire wins
            for other in message.fields:
                if other.oneof == known.oneof and other is not known:
                    result.pop(other.name, None)
        result[known.name] = value


def _decode_value(where: str, known: Field, raw: int | bytes) -> Any:
    if isinstance(raw, int):
        return _FROM_NUMBER[known.kind](known, raw)
    match known.kind:
        case Kind.MESSAGE:
            assert known.message is not None
            return decode(known.message, raw)
        case Kind.BYTES:
            return raw
        case Kind.TIMESTAMP:
            return _decode_timestamp(where, raw)
        case Kind.STRING_MAP:
            pair = decode(_MAP_ENTRY, raw)
            return {pair.get("key", ""): pair.get("value", "")}
        case _:
            return _utf8(where, raw)


def _signed64(_: Field, number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _zigzag32(_: Field, number: int) -> int:
    number &= 2**32 - 1
    return (number >> 1) ^ -(number & 1)


_FROM_NUMBER: Mapping[Kind, Callable[[Field, int], Any]] = {
    Kind.BOOL: lambda _, number: number != 0,
    Kind.UINT32: lambda _, number: number & (2**32 - 1),
    Kind.SINT32: _zigzag32,
    Kind.INT64: _signed64,
    Kind.ENUM: lambda known, number: enum_name(known.values, _signed64(known, number)),
}


def _packed(where: str, known: Field, raw: int | bytes) -> Iterator[Any]:
    assert isinstance(raw, bytes)
    at = 0
    while at < len(raw):
        number, at = _read_varint(where, raw, at)
        yield _decode_value(where, known, number)


def _fields(name: str, data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """Each field of a message: number, wire type, and its number or bytes."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(name, data, at)
        number, wire_type = tag >> 3, tag & 7
        if not 1 <= number < 2**29:
            raise MalformedMessageError(f"{name} has a field with the invalid number {number}")
        if wire_type == _VARINT:
            value, at = _read_varint(name, data, at)
            yield number, wire_type, value
            continue
        if wire_type == _LENGTH:
            length, at = _read_varint(name, data, at)
        elif wire_type in _FIXED_BYTES:
            length = _FIXED_BYTES[wire_type]
        else:
            raise MalformedMessageError(f"{name} has a field of unknown wire type {wire_type}")
        if length > len(data) - at:
            raise MalformedMessageError(f"{name} is cut off inside field {number}")
        yield number, wire_type, data[at : at + length]
        at += length


def _read_varint(where: str, data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise MalformedMessageError(f"{where} is cut off inside a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), at
    raise MalformedMessageError(f"{where} has a number longer than ten bytes")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _tag(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _sized(data: bytes) -> bytes:
    return _varint(len(data)) + data


def _tagged_text(number: int, text: str) -> bytes:
    return _tag(number, _LENGTH) + _sized(text.encode())


def _utf8(where: str, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise MalformedMessageError(f"{where} is not valid UTF-8") from error


_MAP_ENTRY = Message("MapEntry", (Field(1, "key", Kind.STRING), Field(2, "value", Kind.STRING)))
_TIMESTAMP = Message("Timestamp", (Field(1, "seconds", Kind.INT64), Field(2, "nanos", Kind.INT64)))


def _encode_timestamp(text: str) -> bytes:
    whole, dot, fraction = text.removesuffix("Z").partition(".")
    moment = datetime.fromisoformat(whole).replace(tzinfo=UTC)
    seconds = (moment - _EPOCH) // timedelta(seconds=1)
    nanos = int(fraction[:9].ljust(9, "0")) if dot else 0
    return encode(_TIMESTAMP, {"seconds": seconds, "nanos": nanos})


def _decode_timestamp(where: str, raw: bytes) -> str:
    value = decode(_TIMESTAMP, raw)
    nanos = value.get("nanos", 0)
    try:
        moment = _EPOCH + timedelta(seconds=value.get("seconds", 0))
    except OverflowError as error:
        raise MalformedMessageError(f"{where} is outside the calendar") from error
    if not 0 <= nanos < _NANOS_PER_S:
        raise MalformedMessageError(f"{where} has {nanos} nanoseconds")
    fraction = f".{nanos:09d}" if nanos else ""
    while fraction.endswith("000"):  # 3, 6 or 9 digits, as the JSON form has them
        fraction = fraction[:-3]
    return moment.replace(tzinfo=None).isoformat() + fraction + "Z"
