"""How a message looks in a body: JSON or protobuf, plain or gzipped."""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from alcove.wire import messages, protobuf
from alcove.wire.connect import MAX_MESSAGE_BYTES, ConnectError
from alcove.wire.errors import Code
from alcove.wire.messages import MalformedMessageError, Message

_GZIP_WINDOW = 31  # zlib's name for "a gzip header and trailer"


@dataclass(frozen=True, slots=True)
class Codec:
    name: str
    """The last part of its content types: application/<name> and application/connect+<name>."""
    read: Callable[[Message, bytes], dict[str, Any]]
    write: Callable[[Message, Mapping[str, Any]], bytes]

    def decode(self, message: Message, data: bytes) -> dict[str, Any]:
        """Raises ConnectError INVALID_ARGUMENT."""
        try:
            return self.read(message, data)
        except MalformedMessageError as error:
            raise ConnectError(Code.INVALID_ARGUMENT, str(error.args[0])) from error


JSON = Codec("json", messages.parse_json, lambda _, value: messages.to_json(value))
PROTO = Codec("proto", protobuf.decode, protobuf.encode)

UNARY_TYPES = {f"application/{codec.name}": codec for codec in (JSON, PROTO)}
STREAM_TYPES = {f"application/connect+{codec.name}": codec for codec in (JSON, PROTO)}


def gunzip(data: bytes, limit: int = MAX_MESSAGE_BYTES) -> bytes:
    """Unpack one gzip stream of at most `limit` bytes. Raises ConnectError."""
    unpacker = zlib.decompressobj(_GZIP_WINDOW)
    try:
        unpacked = unpacker.decompress(data, limit + 1)
    except zlib.error as error:
        raise ConnectError(
            Code.INVALID_ARGUMENT, f"the message is not valid gzip: {error}"
        ) from error
    if len(unpacked) > limit:
        raise ConnectError(
            Code.RESOURCE_EXHAUSTED, f"the unpacked message is larger than {limit} bytes"
        )
    if not unpacker.eof or unpacker.unused_data:
        raise ConnectError(Code.INVALID_ARGUMENT, "the message is not one whole gzip stream")
    return unpacked


def gzip(data: bytes) -> bytes:
    packer = zlib.compressobj(level=1, wbits=_GZIP_WINDOW)
    return packer.compress(data) + packer.flush()


def accepts_gzip(header: str | None) -> bool:
    """Whether an Accept-Encoding header names gzip with a weight above zero."""
    for offer in (header or "").split(","):
        name, _, weight = offer.partition(";")
        if name.strip().lower() == "gzip":
            return weight.replace(" ", "").lower().rstrip("0").rstrip(".") != "q="
    return False
