"""The edge between real sockets: heads and bodies, well-formed, odd and hostile."""

import asyncio
import os

import pytest
from edge_world import (
    DOMAIN,
    ONE,
    TWO,
    World,
    echo,
    eventually,
    fixed,
    in_world,
    parse,
    read_answer,
    read_request,
    request,
)


@in_world
async def test_the_head_arrives_as_it_was_sent_less_what_belongs_to_the_hop(there: World) -> None:
    await there.sandbox(ONE, {8000: echo()})
    more = (
        "X-cAsE:  kept \r\nX-Twice: 1\r\nX-Twice: 2\r\nConnection: close, X-Secret, Host\r\n"
        "X-Secret: dropped\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\nProxy-Connection: x\r\n"
    )
    head = (await there.get("/a%20b?q=%2f#", more=more)).json()["head"]
    assert head == (
        f"GET /a%20b?q=%2f# HTTP/1.1\r\nHost: 8000-{ONE}.{DOMAIN}\r\n"
        "X-cAsE:  kept \r\nX-Twice: 1\r\nX-Twice: 2\r\n\r\n"
    )


@in_world
async def test_a_masked_host(there: World) -> None:
    await there.sandbox(ONE, {8000: echo(), 49983: echo()}, mask_request_host="localhost:${PORT}")
    head = (await there.get(more="X-Forwarded-Host: forged\r\n")).json()["head"]
    assert "Host: localhost:8000\r\n" in head
    assert f"X-Forwarded-Host: 8000-{ONE}.{DOMAIN}\r\n" in head
    assert "forged" not in head
    head = (await there.get(port=49983)).json()["head"]
    assert f"Host: 49983-{ONE}.{DOMAIN}\r\n" in head


@in_world
async def test_a_mask_cannot_add_header_lines(there: World) -> None:
    await there.sandbox(ONE, {8000: echo()}, mask_request_host="x\r\nEvil: 1")
    assert "Evil" not in (await there.get()).json()["head"]


HOST = f"Host: 8000-{ONE}.{DOMAIN}\r\n"
POST, GET = f"POST / HTTP/1.1\r\n{HOST}", f"GET / HTTP/1.1\r\n{HOST}"
CODING = "Transfer-Encoding"
SMUGGLING = {
    "length and chunked": f"{POST}Content-Length: 4\r\n{CODING}: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": f"{POST}Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    "equal lengths": f"{POST}Content-Length: 1\r\nContent-Length: 1\r\n\r\nx",
    "list of lengths": f"{POST}Content-Length: 1, 1\r\n\r\nx",
    "signed length": f"{POST}Content-Length: +1\r\n\r\nx",
    "hex length": f"{POST}Content-Length: 0x1\r\n\r\nx",
    "empty length": f"{POST}Content-Length:\r\n\r\n",
    "huge length": f"{POST}Content-Length: 99999999999999999999\r\n\r\n",
    "unknown coding": f"{POST}{CODING}: xchunked\r\n\r\n0\r\n\r\n",
    "coding twice": f"{POST}{CODING}: chunked\r\n{CODING}: identity\r\n\r\n0\r\n\r\n",
    "coding list": f"{POST}{CODING}: chunked, chunked\r\n\r\n0\r\n\r\n",
    "coding with vertical tab": f"{POST}{CODING}: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunked in 1.0": f"POST / HTTP/1.0\r\n{HOST}{CODING}: chunked\r\n\r\n0\r\n\r\n",
    "space before colon": f"{POST}{CODING} : chunked\r\n\r\n0\r\n\r\n",
    "folded line": f"{GET}X: a\r\n b\r\n\r\n",
    "leading space": f"GET / HTTP/1.1\r\n {HOST}\r\n",
    "bare LF": f"GET / HTTP/1.1\n{HOST}\n\n",
    "bare LF in head": f"{GET}X: a\nContent-Length: 5\r\n\r\n",
    "bare CR in value": f"{GET}X: a\rb\r\n\r\n",
    "NUL in value": f"{GET}X: a\0b\r\n\r\n",
    "no colon": f"{GET}Nonsense\r\n\r\n",
    "empty name": f"{GET}: x\r\n\r\n",
    "two hosts": f"{GET}{HOST}\r\n",
    "no host": "GET / HTTP/1.1\r\n\r\n",
    "host with slash": "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "other host in target": f"GET http://8000-{TWO}.{DOMAIN}/ HTTP/1.1\r\n{HOST}\r\n",
    "two spaces": f"GET  / HTTP/1.1\r\n{HOST}\r\n",
    "space in target": f"GET /a b HTTP/1.1\r\n{HOST}\r\n",
    "tab for space": f"GET\t/ HTTP/1.1\r\n{HOST}\r\n",
    "no version": f"GET /\r\n{HOST}\r\n",
    "version 2": f"GET / HTTP/2.0\r\n{HOST}\r\n",
    "HTTP/2 preface": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "CONNECT": f"CONNECT 8000-{ONE}.{DOMAIN}:80 HTTP/1.1\r\n{HOST}\r\n",
}


@pytest.mark.parametrize("name", SMUGGLING)
def test_ambiguous_heads_are_refused_and_the_connection_closed(name: str) -> None:
    @in_world
    async def test(there: World) -> None:
        await there.sandbox(ONE, {8000: echo()})
        await there.sandbox(TWO, {8000: echo()})
        raw = SMUGGLING[name].encode("latin-1")
        answer = await there.ask(raw + request(TWO))
        assert parse(answer).status in {400, 405, 505}
        assert parse(answer).field("connection") == "close"
        assert answer.count(b"HTTP/1.1 ") == 1, "something after the bad request was served"
        assert not there.ingress.connects

    test()


@pytest.mark.parametrize(
    "body",
    [
        b"x\r\n", b"-1\r\n\r\n", b"0x1\r\na\r\n", b"1\r\nab\r\n0\r\n\r\n", b"1\na\n0\n\n",
        b" 1\r\na\r\n",
        b"1;\n\r\na\r\n", b"1 \r\na\r\n", b"fffffffffffffffff\r\n", b"0\r\nbad trailer\r\n\r\n",
        b"0\r\n: x\r\n\r\n", b"1;" + b"x" * 5000, b"\r\n", b"1\r\na\n",
    ],
)  # fmt: skip
def test_bad_chunks_are_refused_and_never_end_the_body_cleanly(body: bytes) -> None:
    @in_world
    async def test(there: World) -> None:
        ended = asyncio.Event()

        async def server(reader, writer) -> None:
            try:
                await read_request(reader)
                ended.set()
            except (ValueError, OSError):
                pass

        await there.sandbox(ONE, {8000: server})
        head = request(line="POST / HTTP/1.1", more="Transfer-Encoding: chunked\r\n")
        answer = await there.ask(head + body + request())
        assert parse(answer).status == 400
        assert answer.count(b"HTTP/1.1 ") == 1
        assert not ended.is_set()

    test()


@in_world
async def test_chunk_extensions_and_trailers_end_at_the_edge(there: World) -> None:
    await there.sandbox(ONE, {8000: echo()})
    head = request(
        line="POST / HTTP/1.1", more="Transfer-Encoding: chunked\r\nConnection: close\r\n"
    )
    answer = parse(await there.ask(head + b'5;a="b"\r\nhello\r\n00\r\nX-Trailer: 1\r\n\r\n'))
    assert answer.json()["body"] == "hello"


@in_world
async def test_a_head_that_is_too_large(there: World) -> None:
    await there.sandbox(ONE, {8000: echo()})
    fits = "X: " + "a" * 60_000 + "\r\n"
    assert (await there.get(more=fits)).status == 200
    answer = await there.get(more="X: " + "a" * 70_000 + "\r\n")
    assert answer.status == 431
    assert (await there.get(more="X: a\r\n" * 300)).status == 431
    endless = parse(await there.ask(b"GET / HTTP/1.1\r\n" + b"X" * 70_000))
    assert endless.status == 431


@in_world
async def test_a_head_that_dribbles_in_is_given_up(there: World) -> None:
    reader, writer = await there.connect()
    writer.write(b"GET / HT")
    await eventually(lambda: any(each._held for each in there.edge._connections))
    next(iter(there.edge._connections)).deadline = 0.0  # thirty seconds later
    answer = parse(await reader.read())
    assert answer.status == 408
    writer.close()


@in_world
async def test_an_http_1_0_client(there: World) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked += b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    await there.sandbox(ONE, {8000: fixed(chunked, close=False), 8001: echo()})
    answer = parse(await there.ask(request(line="GET / HTTP/1.0")))
    assert answer.field("transfer-encoding") is None
    assert answer.body == b"hello world"
    reader, writer = await there.connect()
    for _ in range(2):
        writer.write(request(ONE, 8001, "GET / HTTP/1.0", "Connection: keep-alive\r\n"))
        answer = await read_answer(reader)
        assert answer.field("connection") == "keep-alive"
    writer.close()


@in_world
async def test_bodies_of_both_framings_arrive_whole(there: World) -> None:
    await there.sandbox(ONE, {8000: echo()})
    reader, writer = await there.connect()
    for size in (0, 1, 65_536, 300_000):
        body = os.urandom(size // 2).hex().encode()
        writer.write(request(line="PUT / HTTP/1.1", more=f"Content-Length: {len(body)}\r\n") + body)
        assert (await read_answer(reader)).json()["body"].encode() == body
        writer.write(request(line="PUT / HTTP/1.1", more="Transfer-Encoding: chunked\r\n"))
        for start in range(0, len(body), 7001):
            piece = body[start : start + 7001]
            writer.write(b"%X\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        assert (await read_answer(reader)).json()["body"].encode() == body
    writer.close()
    assert there.ingress.connects[ONE, 8000] == 1, "one tunnel served them all"


@pytest.mark.parametrize(
    ("line", "response", "body"),
    [
        ("HEAD / HTTP/1.1", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", b""),
        ("HEAD / HTTP/1.1", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b""),
        ("GET / HTTP/1.1", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        ("HEAD / HTTP/1.1", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody", b""),
        ("GET / HTTP/1.1", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", b""),
        ("GET / HTTP/1.1", b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (
            "GET / HTTP/1.1",
            (
                b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
            ),
            b"ok",
        ),
        (
            "GET / HTTP/1.1",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nX: smuggled\r\n\r\n",
            b"ok",
        ),
    ],
)
def test_a_response_ends_where_it_should_and_the_connection_goes_on(
    line: str, response: bytes, body: bytes
) -> None:
    @in_world
    async def test(there: World) -> None:
        await there.sandbox(ONE, {8000: fixed(response, close=False)})
        await there.sandbox(TWO, {8000: echo("two")})
        reader, writer = await there.connect()
        writer.write(request(line=line) + request(TWO))
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 103 " in head:
            head = await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(len(body)) == body
        assert (await read_answer(reader)).json()["label"] == "two"
        writer.close()

    test()


@in_world
async def test_a_response_without_a_length_ends_with_the_connection(there: World) -> None:
    await there.sandbox(ONE, {8000: fixed(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")})
    answer = parse(await there.ask(request()))
    assert answer.body == b"until the end"
    assert answer.field("connection") == "close"


@pytest.mark.parametrize(
    "response",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000,
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"",
    ],
)
def test_what_is_not_http_becomes_502_that_is_not_mistaken_for_a_dead_sandbox(
    response: bytes,
) -> None:
    @in_world
    async def test(there: World) -> None:
        await there.sandbox(ONE, {8000: fixed(response)})
        answer = await there.get()
        assert answer.status == 502
        assert answer.json()["sandboxId"] == ONE
        assert "was not found" not in answer.json()["message"]
        assert "port is not open" not in answer.json()["message"]

    test()


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\nnonsense\r\n\r\n",
    ],
)
def test_a_truncated_response_never_ends_cleanly(start: bytes) -> None:
    @in_world
    async def test(there: World) -> None:
        await there.sandbox(ONE, {8000: fixed(start)})
        reader, writer = await there.connect()
        writer.write(request())
        await reader.readuntil(b"\r\n\r\n")
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(101)
        assert not reader._buffer.endswith(b"0\r\n\r\n")
        writer.close()

    test()


@in_world
async def test_a_stream_cut_by_a_killed_sandbox_is_a_reset(there: World) -> None:
    await there.sandbox(ONE, {8000: fixed(b"HTTP/1.0 200 OK\r\n\r\npart", close=False)})
    reader, writer = await there.connect()
    writer.write(request())
    await reader.readuntil(b"part")
    there.ingress.kill(ONE)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()


@in_world
async def test_an_early_answer_reaches_a_client_that_is_still_sending(there: World) -> None:
    early = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig"
    await there.sandbox(ONE, {8000: fixed(early, close=False)})
    reader, writer = await there.connect()
    writer.write(request(line="POST / HTTP/1.1", more="Content-Length: 8000000\r\n") + b"x" * 100)
    answer = await read_answer(reader)
    assert (answer.status, answer.body) == (413, b"big")
    writer.write(b"x" * 1_000_000)  # nobody reads it, and nobody resets the connection for it
    await writer.drain()
    assert await reader.read() == b""
    writer.close()


@in_world
async def test_an_error_reaches_a_client_that_is_still_sending(there: World) -> None:
    reader, writer = await there.connect()
    writer.write(request("i404", line="POST / HTTP/1.1", more="Content-Length: 50000000\r\n"))
    for _ in range(20):
        writer.write(b"x" * 100_000)
        await writer.drain()
    assert (await read_answer(reader)).status == 502
    writer.close()


@in_world
async def test_expect_100_continue_is_the_sandboxs_to_answer(there: World) -> None:
    async def server(reader, writer) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Expect: 100-continue" in head
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(5)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + body)

    await there.sandbox(ONE, {8000: server})
    reader, writer = await there.connect()
    writer.write(
        request(line="POST / HTTP/1.1", more="Content-Length: 5\r\nExpect: 100-continue\r\n")
    )
    assert b"100 Continue" in await reader.readuntil(b"\r\n\r\n")
    writer.write(b"hello")
    assert (await read_answer(reader)).body == b"hello"
    writer.close()


@in_world
async def test_events_pass_one_by_one(there: World) -> None:
    go = asyncio.Event()

    async def server(reader, writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        for number in range(3):
            event = b"data: %d\n\n" % number
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await go.wait()
            go.clear()
        writer.write(b"0\r\n\r\n")

    await there.sandbox(ONE, {8000: server})
    reader, writer = await there.connect()
    writer.write(request())
    for number in range(3):
        await reader.readuntil(b"data: %d\n\n\r\n" % number)  # before the server goes on
        go.set()
    await reader.readuntil(b"0\r\n\r\n")
    writer.close()


@pytest.mark.parametrize(
    ("line", "response"),
    [
        (
            "GET / HTTP/1.1",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 Evil\r\n\r\n",
        ),
        ("HEAD / HTTP/1.1", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody"),
    ],
)
def test_a_tunnel_that_said_too_much_is_not_used_again(line: str, response: bytes) -> None:
    @in_world
    async def test(there: World) -> None:
        await there.sandbox(ONE, {8000: fixed(response, close=False)})
        for _ in range(2):
            reader, writer = await there.connect()
            writer.write(request(line=line))
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
            writer.close()
        assert there.ingress.connects[ONE, 8000] == 2

    test()
