"""Connect RPC on the wire, sans-I/O: envelopes, end of stream, errors, time limits.

    envelope = flags (1 byte) | length (4 bytes, big endian) | payload
    flags: 0x01 payload is compressed, 0x02 payload ends the stream

Protocol: https://connectrpc.com/docs/protocol (contract e2b 3.4).
"""

import json
from dataclasses import dataclass
from typing import Any

from alcove.wire.errors import HTTP_STATUS, Code, bounded

COMPRESSED = 0x01
END_STREAM = 0x02
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Largest message accepted, compressed or not."""

_HEADER_BYTES = 5
_MAX_TIMEOUT_DIGITS = 10


class ConnectError(Exception):
    """An error answer of an RPC."""

    def __init__(self, code: Code, message: str) -> None:
        self.code = code
        self.message = bounded(message)
        super().__init__(f"{code}: {self.message}")

    @property
    def http_status(self) -> int:
        return HTTP_STATUS[self.code]

    def to_json(self) -> dict[str, str]:
        return {"code": self.code.value, "message": self.message}


@dataclass(frozen=True, slots=True)
class Envelope:
    flags: int
    payload: bytes

    @property
    def compressed(self) -> bool:
        return bool(self.flags & COMPRESSED)

    @property
    def ends_stream(self) -> bool:
        return bool(self.flags & END_STREAM)


def encode_envelope(payload: bytes, flags: int = 0) -> bytes:
    return flags.to_bytes(1, "big") + len(payload).to_bytes(4, "big") + payload


def encode_end_stream(error: ConnectError | None = None) -> bytes:
    """The last envelope of a response stream."""
    body: dict[str, Any] = {} if error is None else {"error": error.to_json()}
    return encode_envelope(_compact(body), END_STREAM)


def encode_error(error: ConnectError) -> bytes:
    """Body of a unary error answer; its HTTP status is `error.http_status`."""
    return _compact(error.to_json())


class EnvelopeDecoder:
    """Cuts a byte stream into envelopes.

    Raises ConnectError RESOURCE_EXHAUSTED for a message over the limit as soon as its length is
    known, and INVALID_ARGUMENT for flags the protocol does not have.
    """

    def __init__(self, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._limit = max_message_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Envelope]:
        """Take bytes as they arrive; give the envelopes they complete."""
        self._buffer += data
        envelopes: list[Envelope] = []
        start = 0
        while len(self._buffer) - start >= _HEADER_BYTES:
            flags = self._buffer[start]
            length = int.from_bytes(self._buffer[start + 1 : start + _HEADER_BYTES], "big")
            self._check(flags, length)
            end = start + _HEADER_BYTES + length
            if len(self._buffer) < end:
                break
            payload = bytes(self._buffer[start + _HEADER_BYTES : end])
            envelopes.append(Envelope(flags, payload))
            start = end
        del self._buffer[:start]
        return envelopes

    def finish(self) -> None:
        """Call at the end of the stream; raises INVALID_ARGUMENT if it ends inside an envelope."""
        if self._buffer:
            raise ConnectError(
                Code.INVALID_ARGUMENT,
                f"the stream ends inside an envelope ({len(self._buffer)} bytes left over)",
            )

    def _check(self, flags: int, length: int) -> None:
        if flags & ~(COMPRESSED | END_STREAM):
            raise ConnectError(Code.INVALID_ARGUMENT, f"envelope has unknown flags 0x{flags:02x}")
        if length > self._limit:
            raise ConnectError(
                Code.RESOURCE_EXHAUSTED,
                f"message of {length} bytes is larger than the limit of {self._limit} bytes",
            )


def parse_timeout_ms(text: str | None) -> int | None:
    """Read the Connect-Timeout-Ms header; None and "0" mean no limit.

    Raises ConnectError INVALID_ARGUMENT when it is not a number of at most ten digits.
    """
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_TIMEOUT_DIGITS):
        raise ConnectError(
            Code.INVALID_ARGUMENT,
            f"connect-timeout-ms: '{text}' is not a whole number of at most ten digits",
        )
    return int(text) or None


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
