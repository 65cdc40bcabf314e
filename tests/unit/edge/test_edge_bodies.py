"""Bodies: the same content and end however the bytes are cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.edge.bodies import LAST_CHUNK, BadBodyError, Body, Chunked, Length, chunk

_chunks = st.lists(st.binary(min_size=1, max_size=50), max_size=8)


def _cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(edges)]


def _feed(body: Body, parts: list[bytes]) -> tuple[bytes, bytes]:
    content, surplus = b"", b""
    for part in parts:
        if body.done:
            surplus += part
            continue
        pieces, rest = body.feed(part)
        content += b"".join(pieces)
        surplus += rest
    return content, surplus


@given(
    _chunks,
    st.sampled_from([b"", b";a=b", b' ; x="y"']),
    st.sampled_from([b"", b"T: 1\r\n", b"T: 1\r\nU: 2\r\n"]),
    st.binary(max_size=10),
    st.lists(st.integers(0, 10_000), max_size=30),
)
def test_chunked_content_and_end(
    chunks: list[bytes], extension: bytes, trailers: bytes, behind: bytes, cuts: list[int]
) -> None:
    coded = b"".join(b"%x%b\r\n%b\r\n" % (len(each), extension, each) for each in chunks)
    coded += b"0" + extension + b"\r\n" + trailers + b"\r\n"
    body = Chunked()
    content, surplus = _feed(body, _cut(coded + behind, cuts))
    assert body.done
    assert content == b"".join(chunks)
    assert surplus == behind


@given(_chunks, st.lists(st.integers(0, 10_000), max_size=30))
def test_what_is_framed_anew_reads_the_same(chunks: list[bytes], cuts: list[int]) -> None:
    coded = b"".join(b"".join(chunk([each])) for each in chunks) + LAST_CHUNK
    body = Chunked()
    assert _feed(body, _cut(coded, cuts)) == (b"".join(chunks), b"")
    assert body.done


@given(st.binary(max_size=100), st.lists(st.integers(0, 1000), max_size=10))
def test_noise_never_ends_a_chunked_body_other_than_by_its_last_chunk(
    noise: bytes, cuts: list[int]
) -> None:
    body = Chunked()
    try:
        _feed(body, _cut(noise, cuts))
    except BadBodyError:
        return
    assert not body.done or b"0" in noise


@pytest.mark.parametrize("step", [1, 3, 10_000])
def test_an_endless_line_is_refused(step: int) -> None:
    for start in (b"1;", b"0\r\nT: "):
        body = Chunked()
        body.feed(start)
        with pytest.raises(BadBodyError):
            for _ in range(0, 80_000, step):
                body.feed(b"x" * step)


def test_endless_trailers_are_refused() -> None:
    body = Chunked()
    body.feed(b"0\r\n")
    with pytest.raises(BadBodyError):
        for _ in range(20_000):
            body.feed(b"T: 1\r\n")


@given(st.integers(0, 200), st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=8))
def test_length(size: int, data: bytes, cuts: list[int]) -> None:
    body = Length(size)
    content, surplus = _feed(body, _cut(data, cuts))
    assert content == data[:size]
    assert surplus == data[size:]
    assert body.done is (len(data) >= size)


def test_no_content_makes_no_chunk() -> None:
    assert chunk([]) == []
    assert chunk([b""]) == []
