"""The edge between real sockets: whom a request reaches, and the edge's own answers."""

import pytest
from edge_world import (
    DOMAIN,
    ONE,
    TWO,
    World,
    echo,
    in_world,
    parse,
    read_answer,
    request,
)


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
    asked = "Origin: http://x\r\nAccess-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: x-a\r\n"  # noqa: E501
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
    assert "right" not in right.json()["head"], "the token is not for what runs inside"
    assert (await there.get(port=49983)).status == 200, "the guest has a token of its own"


@pytest.mark.parametrize(
    "path",
    [
        "/init", "/INIT", "/init/", "//init", "/./init", "/x/../init", "/%69nit", "/%2569nit",
        "/init?x=1", "/init%00", "/init%20", "\\init", "/%5cinit", "/init;x",
        "/a%2finit", "/init#x",
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
