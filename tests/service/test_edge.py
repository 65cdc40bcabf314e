"""The edge between real sockets: routing, errors, framing, streams, connections that end badly."""

import asyncio
import base64
import json
import os
import socket

import pytest
from edge_world import (
    DOMAIN,
    ONE,
    TWO,
    World,
    echo,
    fixed,
    in_world,
    parse,
    read_answer,
    read_request,
    reset,
    run,
    world,
)


def request(sandbox: str = ONE, port: int = 8000, line: str = "GET / HTTP/1.1", more: str = ""):
    return f"{line}\r\nHost: {port}-{sandbox}.{DOMAIN}\r\n{more}\r\n".encode()


# Routing.


@in_world
async def test_one_connection_carries_requests_to_many_sandboxes(there: World) -> None:
    await there.sandbox(ONE, {8000: echo("one"), 9000: echo("one, other port")})
    await there.sandbox(TWO, {8000: echo("two")})
    reader, writer = await there.connect()
    labels = []
    for sandbox, port in [(ONE, 8000), (TWO, 8000), (ONE, 9000), (ONE, 8000)]:
        writer.write(request(sandbox, port))
        labels.append((await read_answer(reader)).json()["label"])
    assert labels == ["one", "two", "one, other port", "one"]
    writer.close()


@in_world
async def test_pipelined_requests_are_answered_in_order(there: World) -> None:
    await there.sandbox(ONE, {8000: echo("one")})
    await there.sandbox(TWO, {8000: echo("two")})
    reader, writer = await there.connect()
    post = request(ONE, line="POST / HTTP/1.1", more="Content-Length: 5\r\n") + b"hello"
    writer.write(post + request("i404") + request(TWO) + post)
    answers = [await read_answer(reader) for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 502, 200, 200]
    assert answers[2].json()["label"] == "two"
    assert answers[3].json()["body"] == "hello"
    writer.close()


@in_world
async def test_the_host_label_wins_over_routing_headers(there: World) -> None:
    await there.sandbox(ONE, {8000: echo("one")})
    await there.sandbox(TWO, {8000: echo("two")})
    spoof = f"E2b-Sandbox-Id: {TWO}\r\nE2b-Sandbox-Port: 8000\r\n"
    assert (await there.get(more=spoof)).json()["label"] == "one"
    for host in ("localhost:3002", "127.0.0.1", "[::1]:3002", "sandbox.e2b.app", "edge.internal"):
        answer = parse(
            await there.ask(
                f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{spoof}\r\n".encode()
            )
        )
        assert answer.json()["label"] == "two", host
        assert f"E2b-Sandbox-Id: {TWO}" in answer.json()["head"]
        assert f"Host: {host}" in answer.json()["head"]


@pytest.mark.parametrize(
    ("host", "more", "text"),
    [
        ("localhost", "E2b-Sandbox-Id: i1\r\n", "missing header"),
        ("localhost", "E2b-Sandbox-Port: 1\r\n", "missing header"),
        ("nonsense", "", "Invalid host"),
        ("a.b.c", "E2b-Sandbox-Id: i1\r\nE2b-Sandbox-Port: 1\r\n", "Invalid host"),
        (f"0-{ONE}.{DOMAIN}", "", "Invalid sandbox port"),
        (f"65536-{ONE}.{DOMAIN}", "", "Invalid sandbox port"),
        (f"x-{ONE}.{DOMAIN}", "", "Invalid sandbox port"),
        ("localhost", "E2b-Sandbox-Id: ../x\r\nE2b-Sandbox-Port: 1\r\n", "Invalid sandbox ID"),
        ("localhost", "E2b-Sandbox-Id: i1\r\nE2b-Sandbox-Port: +1\r\n", "Invalid sandbox port"),
    ],
)
def test_hosts_that_name_nothing(host: str, more: str, text: str) -> None:
    @in_world
    async def test(there: World) -> None:
        answer = parse(
            await there.ask(
                f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n".encode()
            )
        )
        assert (answer.status, answer.body.decode()) == (400, text)
        assert answer.field("access-control-allow-origin") == "*"

    test()


@in_world
async def test_a_file_url_without_an_id_is_told_what_is_missing(there: World) -> None:
    answer = parse(
        await there.ask(
            b"GET /files?path=x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
    )
    assert answer.status == 400
    assert answer.body.startswith(b"missing header")


@in_world
async def test_health_is_the_edges_only_without_a_sandbox(there: World) -> None:
    await there.sandbox(ONE, {49983: echo("guest")})
    for host in ("localhost:3002", DOMAIN):
        answer = parse(
            await there.ask(
                f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
            )
        )
        assert answer.status == 200
        assert answer.json()["status"] == "ok"
    routed = f"E2b-Sandbox-Id: {ONE}\r\nE2b-Sandbox-Port: 49983\r\n"
    answer = parse(
        await there.ask(
            f"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{routed}\r\n".encode()
        )
    )
    assert answer.json()["label"] == "guest"


@in_world
async def test_the_api_host_goes_to_control_but_never_to_its_internal_routes(there: World) -> None:
    ask = f"GET %s HTTP/1.1\r\nHost: api.{DOMAIN}:3443\r\nConnection: close\r\n\r\n"
    assert parse(await there.ask((ask % "/v2/sandboxes").encode())).json() == {
        "path": "/v2/sandboxes"
    }
    for path in ("/internal/routes/i1", "//internal/x", "/%69nternal/status", "/./INTERNAL/x"):
        assert parse(await there.ask((ask % path).encode())).status == 404, path
    assert parse(await there.ask((ask % "/templates/aliases/internal").encode())).status == 200
    there.control_server.close()


# Answers of the edge's own.


@in_world
async def test_an_unknown_sandbox(there: World) -> None:
    answer = await there.get()
    assert answer.status == 502
    assert (
        answer.body
        == b'{"sandboxId":"%b","message":"The sandbox was not found","code":502}' % ONE.encode()
    )
    await there.sandbox(ONE, {8000: echo()})
    assert (await there.get()).status == 200, "a negative answer was remembered"


@in_world
async def test_a_closed_port(there: World) -> None:
    await there.sandbox(ONE)
    answer = await there.get()
    assert answer.status == 502
    assert answer.body == (
        b'{"sandboxId":"%b","message":"The sandbox is running but port is not open",'
        b'"port":8000,"code":502}' % ONE.encode()
    )


@in_world
async def test_browsers_get_a_page(there: World) -> None:
    chrome = "User-Agent: Mozilla/5.0 (X11)\r\nAccept: text/html,*/*;q=0.8\r\n"
    for more in (chrome, "Sec-Fetch-Mode: navigate\r\n"):
        answer = await there.get(more=more)
        assert answer.status == 502
        assert answer.field("content-type") == "text/html; charset=utf-8"
        assert b"The sandbox was not found" in answer.body
    answer = await there.get(more="Accept: text/html\r\nUser-Agent: curl/8\r\n")
    assert answer.field("content-type") == "application/json"


@in_world
async def test_a_preflight_lets_the_browser_see_the_real_error(there: World) -> None:
    asked = "Origin: http://x\r\nAccess-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: x-a\r\n"
    answer = parse(
        await there.ask(request(line="OPTIONS / HTTP/1.1", more=f"Connection: close\r\n{asked}"))
    )
    assert answer.status == 204
    assert answer.field("access-control-allow-headers") == "x-a"


@in_world
async def test_the_traffic_token(there: World) -> None:
    await there.sandbox(ONE, {8000: echo(), 49983: echo()}, traffic_token="right")
    missing = await there.get()
    assert missing.status == 403
    assert missing.json() == {
        "sandboxId": ONE,
        "message": "Sandbox is secured with traffic access token. "
        "Token header 'e2b-traffic-access-token' is missing",
        "code": 403,
    }
    wrong = await there.get(more="E2B-Traffic-Access-Token: wr\xf6ng\r\n")
    assert wrong.status == 403
    assert (
        "Provided token in header 'e2b-traffic-access-token' is invalid" in wrong.json()["message"]
    )
    right = await there.get(more="E2B-TRAFFIC-ACCESS-TOKEN: right\r\n")
    assert right.status == 200
    assert "E2B-TRAFFIC-ACCESS-TOKEN: right" in right.json()["head"], "the token is forwarded"
    assert (await there.get(port=49983)).status == 200, "the guest has a token of its own"


@pytest.mark.parametrize(
    "path",
    [
        "/init", "/INIT", "/init/", "//init", "/./init", "/x/../init", "/%69nit", "/%2569nit",
        "/init?x=1", "/init%00", "/init%20", "\\init", "/%5cinit", "/init;x", "/a%2finit", "/init#x",
        "/freeze", "/unfreeze", "/collapse", "/fsfreeze", "/fsthaw", "/upgrade", "/forward",
        "/memory/stats", "http://49983-i1111111111.alcove.localhost/init",
        "/%" + "25" * 20 + "69nit",
    ],
)  # fmt: skip
def test_internal_routes_of_the_guest_are_refused(path: str) -> None:
    @in_world
    async def test(there: World) -> None:
        await there.sandbox(ONE, {49983: echo(), 8000: echo()})
        answer = parse(
            await there.ask(
                request(ONE, 49983, line=f"POST {path} HTTP/1.1", more="Connection: close\r\n")
            )
        )
        assert answer.status in {400, 404}
        if answer.status == 404:
            assert set(answer.json()) == {"message", "path", "code"}
            assert answer.json()["code"] == 404
        assert there.ingress.connects[ONE, 49983] == 0
        if path.startswith("/") and "#" not in path:
            assert (await there.get(path)).status == 200, "the user's own ports have no such rule"

    test()


@in_world
async def test_the_guest_cannot_be_upgraded_to_a_protocol_the_edge_does_not_read(
    there: World,
) -> None:
    await there.sandbox(ONE, {49983: echo()})
    answer = await there.get(
        port=49983,
        more="Connection: Upgrade, close, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n",
    )
    head = answer.json()["head"].lower()
    assert "upgrade" not in head
    assert "http2-settings" not in head


# Heads.


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
SMUGGLING = {
    "length and chunked": f"POST / HTTP/1.1\r\n{HOST}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": f"POST / HTTP/1.1\r\n{HOST}Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    "equal lengths": f"POST / HTTP/1.1\r\n{HOST}Content-Length: 1\r\nContent-Length: 1\r\n\r\nx",
    "list of lengths": f"POST / HTTP/1.1\r\n{HOST}Content-Length: 1, 1\r\n\r\nx",
    "signed length": f"POST / HTTP/1.1\r\n{HOST}Content-Length: +1\r\n\r\nx",
    "hex length": f"POST / HTTP/1.1\r\n{HOST}Content-Length: 0x1\r\n\r\nx",
    "empty length": f"POST / HTTP/1.1\r\n{HOST}Content-Length:\r\n\r\n",
    "huge length": f"POST / HTTP/1.1\r\n{HOST}Content-Length: 99999999999999999999\r\n\r\n",
    "unknown coding": f"POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "coding twice": f"POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "coding list": f"POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "coding with vertical tab": f"POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunked in 1.0": f"POST / HTTP/1.0\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "space before colon": f"POST / HTTP/1.1\r\n{HOST}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "folded line": f"GET / HTTP/1.1\r\n{HOST}X: a\r\n b\r\n\r\n",
    "leading space": f"GET / HTTP/1.1\r\n {HOST}\r\n",
    "bare LF": f"GET / HTTP/1.1\n{HOST}\n\n",
    "bare LF in head": f"GET / HTTP/1.1\r\n{HOST}X: a\nContent-Length: 5\r\n\r\n",
    "bare CR in value": f"GET / HTTP/1.1\r\n{HOST}X: a\rb\r\n\r\n",
    "NUL in value": f"GET / HTTP/1.1\r\n{HOST}X: a\0b\r\n\r\n",
    "no colon": f"GET / HTTP/1.1\r\n{HOST}Nonsense\r\n\r\n",
    "empty name": f"GET / HTTP/1.1\r\n{HOST}: x\r\n\r\n",
    "two hosts": f"GET / HTTP/1.1\r\n{HOST}{HOST}\r\n",
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
        b"x\r\n", b"-1\r\n\r\n", b"0x1\r\na\r\n", b"1\r\nab\r\n0\r\n\r\n", b"1\na\n0\n\n", b" 1\r\na\r\n",
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
    await asyncio.sleep(0)
    while not there.edge._connections or not next(iter(there.edge._connections))._held:
        await asyncio.sleep(0.01)
    next(iter(there.edge._connections)).deadline = 0.0  # thirty seconds later
    answer = parse(await reader.read())
    assert answer.status == 408
    writer.close()


@in_world
async def test_an_http_1_0_client(there: World) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
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


# Bodies and responses.


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
        ("GET / HTTP/1.1", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", b""),
        ("GET / HTTP/1.1", b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (
            "GET / HTTP/1.1",
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
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
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
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


# Upgrades.


def frame(text: bytes, *, mask: bool) -> bytes:
    assert len(text) < 126
    key = os.urandom(4) if mask else b""
    payload = bytes(c ^ key[i % 4] for i, c in enumerate(text)) if mask else text
    return bytes([0x81, len(text) | (0x80 if mask else 0)]) + key + payload


async def websocket_echo(reader, writer) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    assert "Connection: Upgrade\r\n" in head
    assert "Upgrade: websocket\r\n" in head
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: x\r\n\r\n" + frame(b"hi", mask=False)
    )
    while start := await reader.read(2):
        length = start[1] & 0x7F
        key = await reader.readexactly(4)
        masked = await reader.readexactly(length)
        text = bytes(c ^ key[i % 4] for i, c in enumerate(masked))
        writer.write(frame(text, mask=False))
        await writer.drain()
    writer.write(b"bye")
    writer.close()


@in_world
async def test_a_websocket(there: World) -> None:
    await there.sandbox(ONE, {8000: websocket_echo})
    reader, writer = await there.connect()
    key = base64.b64encode(os.urandom(16)).decode()
    writer.write(
        request(
            more="Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
        )
        + frame(b"early", mask=True)
    )
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"Upgrade: websocket\r\n" in head
    assert b"Connection: Upgrade\r\n" in head
    assert await reader.readexactly(4) == frame(b"hi", mask=False)
    assert await reader.readexactly(7) == frame(b"early", mask=False)
    for number in range(100):
        text = b"message %d" % number
        writer.write(frame(text, mask=True))
        assert await reader.readexactly(2 + len(text)) == frame(text, mask=False)
    writer.write_eof()  # a half-closed connection still delivers what the server says last
    assert await reader.read() == b"bye"
    writer.close()
    while there.edge._connections:
        await asyncio.sleep(0.01)


@in_world
async def test_a_refused_upgrade_is_an_ordinary_response(there: World) -> None:
    await there.sandbox(ONE, {8000: echo("plain")})
    reader, writer = await there.connect()
    for _ in range(2):
        writer.write(request(more="Connection: Upgrade\r\nUpgrade: websocket\r\n"))
        assert (await read_answer(reader)).json()["label"] == "plain"
    writer.close()


# Connections that end.


@in_world
async def test_a_client_that_leaves_takes_its_request_along_at_once(there: World) -> None:
    arrived, gone = asyncio.Event(), asyncio.Event()

    async def server(reader, writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        try:
            assert await reader.read() == b""
        except ConnectionResetError:
            pass
        gone.set()

    await there.sandbox(ONE, {8000: server})
    for abrupt in (False, True):
        arrived.clear()
        gone.clear()
        _, writer = await there.connect()
        writer.write(request())
        await arrived.wait()
        if abrupt:
            reset(writer)
        writer.close()
        async with asyncio.timeout(1):
            await gone.wait()


@in_world
async def test_a_stale_tunnel_is_replaced_without_the_client_noticing(there: World) -> None:
    seen = []

    async def server(reader, writer) -> None:
        seen.append(await read_request(reader))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await reader.readexactly(1)  # the next request finds the connection dying
        writer.transport.abort()

    await there.sandbox(ONE, {8000: server})
    reader, writer = await there.connect()
    for line, more in [
        ("GET /1 HTTP/1.1", ""),
        ("GET /2 HTTP/1.1", ""),
        ("PUT /3 HTTP/1.1", "Content-Length: 4\r\n\r\nbody"),
    ]:
        writer.write(request(line=line, more=more)[: -2 if more else None])
        assert (await read_answer(reader)).status == 200
    assert [head.split(" ")[1] for head, _ in seen] == ["/1", "/2", "/3"]
    assert seen[2][1] == b"body"
    writer.write(request(line="POST /4 HTTP/1.1", more="Content-Length: 0\r\n"))
    assert (await read_answer(reader)).status == 502, "a POST may have run: it is not sent again"
    writer.close()


@in_world
async def test_idle_tunnels_end_with_the_sandbox_and_never_cross_generations(there: World) -> None:
    await there.sandbox(ONE, {8000: echo("first life")})
    assert (await there.get()).json()["label"] == "first life"
    there.ingress.kill(ONE)
    assert (await there.get()).json()["message"] == "The sandbox was not found"
    await there.sandbox(ONE, {8000: echo("second life")}, generation=2)
    assert (await there.get()).json()["label"] == "second life", "asked again after the refusal"


@in_world
async def test_a_request_in_flight_learns_that_its_sandbox_was_killed(there: World) -> None:
    arrived = asyncio.Event()

    async def server(reader, writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        await reader.read()

    await there.sandbox(ONE, {8000: server})
    reader, writer = await there.connect()
    writer.write(request())
    await arrived.wait()
    del there.control.routes[ONE]
    there.ingress.kill(ONE)
    assert (await read_answer(reader)).json()["message"] == "The sandbox was not found"
    writer.close()


@in_world
async def test_sandboxes_stay_reachable_while_control_is_away(there: World) -> None:
    await there.sandbox(ONE, {8000: echo("one")})
    await there.get()
    there.control_server.close()
    there.edge.upstreams._catalog._control.close()
    there.edge.upstreams._catalog.expire(ONE)
    assert (await there.get()).json()["label"] == "one"
    unknown = await there.get(sandbox=TWO)
    assert unknown.status == 503
    assert unknown.json()["code"] == 503
    api = parse(
        await there.ask(
            f"GET / HTTP/1.1\r\nHost: api.{DOMAIN}\r\nConnection: close\r\n\r\n".encode()
        )
    )
    assert api.status == 503
    assert set(api.json()) == {"code", "message"}


@in_world
async def test_many_first_requests_ask_control_once(there: World) -> None:
    await there.sandbox(ONE, {8000: echo()})
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(there.get()) for _ in range(50)]
    assert {task.result().status for task in tasks} == {200}
    assert there.control.asked[f"/internal/routes/{ONE}"] == 1


@in_world
async def test_a_slow_reader_slows_the_sandbox_down(there: World) -> None:
    written = 0

    async def server(reader, writer) -> None:
        nonlocal written
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 30))
        while True:
            writer.write(b"x" * 65_536)
            await writer.drain()
            written += 65_536

    await there.sandbox(ONE, {8000: server})
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    connection.connect(("127.0.0.1", there.port))
    connection.sendall(request())
    before = -1
    while written != before:  # until everything on the way is full
        before = written
        await asyncio.sleep(0.3)
    assert 0 < written < 64 << 20
    connection.close()


@in_world
async def test_a_stopping_edge_lets_requests_end(there: World) -> None:
    arrived, go = asyncio.Event(), asyncio.Event()

    async def server(reader, writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        await go.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    await there.sandbox(ONE, {8000: server})
    idle_reader, idle_writer = await there.connect()
    reader, writer = await there.connect()
    writer.write(request())
    await arrived.wait()
    async with asyncio.TaskGroup() as group:
        group.create_task(there.edge.drain(5))
        assert await idle_reader.read() == b""
        go.set()
        answer = await read_answer(reader)
        assert answer.body == b"ok"
        assert answer.field("connection") == "close"
        assert await reader.read() == b""
    for each in (writer, idle_writer):
        each.close()


def test_too_many_connections() -> None:
    async def test() -> None:
        async with world(max_connections=1) as there:
            _, first = await there.connect()
            while not there.edge._connections:
                await asyncio.sleep(0.01)
            answer = parse(await there.ask(b""))
            assert answer.status == 503
            first.close()

    run(test)


@in_world
async def test_nothing_is_left_behind(there: World) -> None:
    """After all kinds of ends, the edge holds no connection, exchange or tunnel."""
    await there.sandbox(ONE, {8000: echo(), 8001: fixed(b"nonsense"), 8002: fixed(b"")})
    for port in (8000, 8001, 8002, 8003):
        await there.get(port=port)
        _, writer = await there.connect()
        writer.write(request(ONE, port))
        writer.transport.abort()
    await there.ask(b"nonsense\r\n\r\n")
    while there.edge._connections:
        await asyncio.sleep(0.01)
    there.ingress.kill(ONE)
    while len(there.edge._pool):
        await asyncio.sleep(0.01)
    assert json.dumps(there.edge.health())
