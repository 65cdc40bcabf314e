"""Connect framing: whatever the cuts, the same envelopes; whatever the bytes, a clear error."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.wire import connect
from alcove.wire.connect import ConnectError, EnvelopeDecoder
from alcove.wire.errors import HTTP_STATUS, Code

FLAGS = st.integers(0, 3)
ENVELOPES = st.lists(st.tuples(FLAGS, st.binary(max_size=200)), max_size=8)


def test_an_error_does_not_send_back_all_that_a_client_sent() -> None:
    error = ConnectError(Code.NOT_FOUND, f"file not found: {'x' * 20_000_000}/end")
    assert error.message.startswith("file not found: xxx")
    assert error.message.endswith("x/end")
    assert len(connect.encode_error(error)) < 10_000
    assert ConnectError(Code.NOT_FOUND, "x" * 4096).message == "x" * 4096


@given(ENVELOPES, st.lists(st.integers(0, 2000)))
def test_envelopes_survive_any_cut(envelopes: list[tuple[int, bytes]], cuts: list[int]) -> None:
    data = b"".join(connect.encode_envelope(payload, flags) for flags, payload in envelopes)
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    decoder = EnvelopeDecoder()
    found = []
    for start, end in itertools.pairwise(edges):
        found += decoder.feed(data[start:end])
    decoder.finish()
    assert [(envelope.flags, envelope.payload) for envelope in found] == envelopes


@given(st.binary(max_size=400))
def test_any_bytes_are_envelopes_or_an_error(data: bytes) -> None:
    decoder = EnvelopeDecoder(max_message_bytes=100)
    try:
        envelopes = decoder.feed(data)
        decoder.finish()
    except ConnectError:
        return
    again = [connect.encode_envelope(each.payload, each.flags) for each in envelopes]
    assert b"".join(again) == data


def test_a_message_over_the_limit_is_refused_before_it_arrives() -> None:
    decoder = EnvelopeDecoder(max_message_bytes=10)
    assert decoder.feed(connect.encode_envelope(bytes(10)))
    with pytest.raises(ConnectError) as caught:
        decoder.feed(b"\x00\x00\x00\x00\x0b")
    assert caught.value.code is Code.RESOURCE_EXHAUSTED


def test_a_stream_that_ends_inside_an_envelope_is_refused() -> None:
    decoder = EnvelopeDecoder()
    decoder.feed(connect.encode_envelope(b"abc")[:-1])
    with pytest.raises(ConnectError, match="ends inside"):
        decoder.finish()


def test_flags_are_read() -> None:
    (envelope,) = EnvelopeDecoder().feed(connect.encode_envelope(b"", 3))
    assert envelope.compressed
    assert envelope.ends_stream


def test_the_end_of_a_stream() -> None:
    assert connect.encode_end_stream() == b"\x02\x00\x00\x00\x02{}"
    error = ConnectError(Code.NOT_FOUND, "gone")
    ended = connect.encode_end_stream(error)
    assert ended[0] == connect.END_STREAM
    assert json.loads(ended[5:]) == {"error": {"code": "not_found", "message": "gone"}}


@pytest.mark.parametrize("code", list(Code))
def test_every_code_has_a_status_and_a_body(code: Code) -> None:
    error = ConnectError(code, "why")
    assert error.http_status == HTTP_STATUS[code]
    assert json.loads(connect.encode_error(error)) == {"code": code.value, "message": "why"}


@pytest.mark.parametrize(
    ("text", "timeout_ms"),
    [(None, None), ("0", None), ("00", None), ("1", 1), ("9" * 10, 10**10 - 1)],
)
def test_timeouts(text: str | None, timeout_ms: int | None) -> None:
    assert connect.parse_timeout_ms(text) == timeout_ms


@given(st.text())
def test_other_timeouts_are_refused(text: str) -> None:
    if text.isascii() and text.isdecimal() and len(text) <= 10:
        return
    with pytest.raises(ConnectError) as caught:
        connect.parse_timeout_ms(text)
    assert caught.value.code is Code.INVALID_ARGUMENT
