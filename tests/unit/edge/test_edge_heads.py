"""Heads: what is read, what is refused, and that a second parser never reads them otherwise."""

import re

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.edge.errors import BadRequestError
from alcove.edge.heads import (
    BadResponseError,
    RequestHead,
    ResponseHead,
    parse_request,
    parse_response,
)

# Bytes that mean something to parsers come up far more often than chance would have it.
_pieces = st.sampled_from(
    [
        b"GET", b"POST", b" ", b"  ", b"\t", b"/", b"*", b"http://h/", b"HTTP/1.1", b"HTTP/1.0",
        b"\r\n", b"\n", b"\r", b"\0", b"\x0b", b":", b",", b";", b"Host: h\r\n", b"Host:h\r\n",
        b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"content-length:5\r\n",
        b"Transfer-Encoding: chunked\r\n", b"transfer-encoding:chunked\r\n", b"chunked",
        b"identity", b"Connection: close\r\n", b"Connection: Upgrade\r\n", b"Upgrade: x\r\n",
        b"X: y\r\n", b"\x80",
    ]
)  # fmt: skip
_soup = st.lists(_pieces | st.binary(max_size=4), max_size=12).map(b"".join)
_fields = st.lists(_pieces.filter(lambda piece: piece.endswith(b"\r\n")), max_size=5).map(b"".join)
_requests = st.one_of(
    _soup,
    st.builds(lambda soup: b"GET / HTTP/1.1\r\nHost: h\r\n" + soup, _soup),
    st.builds(
        lambda method, fields: method + b" / HTTP/1.1\r\nHost: h\r\n" + fields,
        st.sampled_from([b"GET", b"POST", b"PUT"]),
        _fields,
    ),
)
_responses = st.one_of(
    _soup,
    st.builds(lambda soup: b"HTTP/1.1 200 OK\r\n" + soup, _soup),
    st.builds(lambda fields: b"HTTP/1.1 200 OK\r\n" + fields, _fields),
)


class _Oracle:
    """What llhttp, the parser of Node.js, makes of the same bytes."""

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.heads = 0
        self.messages = 0
        self.body = b""

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.heads += 1

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.messages += 1


def _request(head: bytes) -> RequestHead | None:
    try:
        return parse_request(head)
    except BadRequestError:
        return None


def _response(head: bytes) -> ResponseHead | None:
    try:
        return parse_response(head)
    except BadResponseError:
        return None


@given(_requests)
def test_what_is_forwarded_is_one_request_to_another_parser_too(raw: bytes) -> None:
    head = _request(raw)
    if head is None or head.upgrade is not None:
        return
    oracle = _Oracle()
    body = b"5\r\nhello\r\n0\r\n\r\n" if head.length is None else b"x" * min(head.length, 100)
    forwarded = head.forward(None)
    httptools.HttpRequestParser(oracle).feed_data(forwarded + body)
    assert (oracle.heads, oracle.messages) == (1, 1)
    assert oracle.body == (b"hello" if head.length is None else body)


@given(_requests)
def test_what_is_forwarded_reads_the_same_again(raw: bytes) -> None:
    head = _request(raw)
    if head is None:
        return
    again = parse_request(head.forward(None)[:-2])
    assert (again.method, again.target, again.host, again.length, again.upgrade) == (
        head.method, head.target, head.host, head.length, head.upgrade,
    )  # fmt: skip
    assert again.forward(None) == head.forward(None)


@given(_responses)
def test_a_forwarded_response_is_one_response_to_another_parser_too(raw: bytes) -> None:
    head = _response(raw)
    if head is None or head.status < 200 or head.status in {204, 304}:
        return
    extra = [b"Transfer-Encoding: chunked"] if head.chunked else []
    if head.length is None and not head.chunked:
        extra.append(b"Connection: close")
    oracle = _Oracle()
    body = b"5\r\nhello\r\n0\r\n\r\n" if head.chunked else b"x" * min(head.length or 0, 100)
    forwarded = head.forward(extra, keep_length=not head.chunked)
    httptools.HttpResponseParser(oracle).feed_data(forwarded + body)
    assert oracle.heads == 1
    assert oracle.body == (b"hello" if head.chunked else body)


@given(st.binary(max_size=200))
def test_noise_is_refused_with_an_error_of_ours(raw: bytes) -> None:
    _request(raw)
    _response(raw)


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,20}", fullmatch=True),
            st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40),
        ),
        max_size=20,
    )
)
def test_end_to_end_fields_are_forwarded_byte_for_byte(fields: list[tuple[str, str]]) -> None:
    special = {"host", "connection", "content-length", "transfer-encoding", "te", "upgrade"}
    special |= {"keep-alive", "proxy-connection", "trailer", "http2-settings", "expect"}
    lines = [f"{name}:{value}" for name, value in fields if name.lower() not in special]
    raw = "\r\n".join(["GET / HTTP/1.1", "Host: h", *lines]).encode() + b"\r\n"
    assert parse_request(raw).forward(None) == raw + b"\r\n"


@pytest.mark.parametrize(
    ("target", "host", "path"),
    [
        (b"/a?b", b"h", b"/a?b"),
        (b"http://h:80/a", b"H:80", b"/a"),
        (b"HTTPS://h", b"h", b"/"),
        (b"http://h?x", b"h", b"/?x"),
    ],
)
def test_targets(target: bytes, host: bytes, path: bytes) -> None:
    assert parse_request(b"GET %b HTTP/1.1\r\nHost: %b\r\n" % (target, host)).target == path


@pytest.mark.parametrize("target", [b"a", b"*", b"http://other/", b"ftp://h/", b"h:80", b"?x"])
def test_targets_that_are_refused(target: bytes) -> None:
    with pytest.raises(BadRequestError):
        parse_request(b"GET %b HTTP/1.1\r\nHost: h\r\n" % target)


def test_the_head_grammar_has_no_expensive_inputs() -> None:
    hostile = b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * 10_000 + b"a" * 10_000
    assert _request(hostile) is None
    assert _request(b"GET /" + b"a" * 60_000 + b"\0 HTTP/1.1\r\n") is None


def test_a_chunked_response_with_a_length_is_not_kept() -> None:
    head = parse_response(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n")
    assert head.chunked
    assert head.length is None
    assert not head.keep_alive
    assert not re.search(rb"content-length", head.forward([], keep_length=False), re.IGNORECASE)
