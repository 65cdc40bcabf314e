"""The HTTP server, in raw bytes against a real agent."""

import gzip
import json
import select
import time

import pytest
from guest_agent import Agent, envelope

HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
START = json.dumps({"process": {"cmd": "sleep", "args": ["60"]}, "stdin": False}).encode()


def exchange(agent: Agent, *parts: bytes) -> bytes:
    """Send parts one by one, then read until the server closes."""
    with agent.raw() as sock:
        for part in parts:
            sock.sendall(part)
        sock.shutdown(1)
        received = bytearray()
        while data := sock.recv(65536):
            received += data
        return bytes(received)


def rpc_head(length: int, *more: str) -> bytes:
    lines = ["POST /process.Process/List HTTP/1.1", "host: x", "content-type: application/json"]
    return "\r\n".join([*lines, f"content-length: {length}", *more, "", ""]).encode()


def test_a_connection_serves_many_requests(agent: Agent) -> None:
    connection = agent.connect()
    for _ in range(3):
        connection.request("GET", "/health")
        response = connection.getresponse()
        assert (response.status, response.read()) == (204, b"")
        assert response.getheader("cache-control") == "no-store"
    connection.close()


def test_pipelined_requests_are_answered_in_order(agent: Agent) -> None:
    answer = exchange(agent, HEALTH + rpc_head(2) + b"{}" + HEALTH)
    assert answer.count(b"HTTP/1.1 204") == 2
    assert answer.index(b'{"processes":') > answer.index(b"HTTP/1.1 204")


def test_a_request_may_arrive_byte_by_byte(agent: Agent) -> None:
    whole = rpc_head(2) + b"{}"
    answer = exchange(agent, *(whole[i : i + 1] for i in range(len(whole))))
    assert b'{"processes":' in answer


def test_chunked_bodies_are_joined_and_the_next_request_follows(agent: Agent) -> None:
    head = (
        b"POST /process.Process/List HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    )
    answer = exchange(agent, head + b"1\r\n{\r\n1;x=y\r\n}\r\n0\r\n\r\n" + HEALTH)
    assert b'{"processes":' in answer
    assert b"HTTP/1.1 204" in answer


def test_a_client_that_waits_is_told_to_continue(agent: Agent) -> None:
    with agent.raw() as sock:
        sock.sendall(rpc_head(2, "expect: 100-continue"))
        assert sock.recv(1024).startswith(b"HTTP/1.1 100")
        sock.sendall(b"{}")
        assert sock.recv(1024).startswith(b"HTTP/1.1 200")


def test_a_stream_does_not_begin_before_its_request_has_arrived(agent: Agent) -> None:
    """The official client ends its request body as soon as it sees a response."""
    lines = ["POST /process.Process/Start HTTP/1.1", "host: x", "transfer-encoding: chunked"]
    head = "\r\n".join([*lines, "content-type: application/connect+json", "", ""]).encode()
    message = envelope(b'{"process":{"cmd":"/bin/echo","args":["hi"]},"stdin":false}')
    with agent.raw() as sock:
        sock.sendall(head)
        assert select.select([sock], [], [], 0.3)[0] == []
        sock.sendall(b"%x\r\n%b\r\n" % (len(message), message))
        sock.sendall(b"0\r\n\r\n")
        received = b""
        while not received.endswith(b"\r\n0\r\n\r\n"):
            received += sock.recv(65536)
    assert b'"exited":true' in received


def test_head_gives_the_head_only(agent: Agent) -> None:
    answer = exchange(agent, b"HEAD /envs HTTP/1.1\r\nhost: x\r\n\r\n" + HEALTH)
    first, _, rest = answer.partition(b"\r\n\r\n")
    assert b"content-length: " in first.lower()
    assert rest.startswith(b"HTTP/1.1 204")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET /health HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nhost: x\r\ncontent-length: 1x\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n", 501),
        (b"GET /health HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"a" * 70_000, 431),
        (b"GET /health HTTP/1.1\r\nhost: x\r\n", 400),  # ends inside the head
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),  # TLS to a plain port
        (b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n", 404),
        (b"PUT /health HTTP/1.1\r\nhost: x\r\n\r\n", 405),
        (b"GET /files?path=%ff HTTP/1.1\r\nhost: x\r\n\r\n", 400),  # no UTF-8
        (rpc_head(10) + b"{}", 400),  # body shorter than announced
    ],
)
def test_malformed_requests_get_json_errors(
    agent: Agent, request_bytes: bytes, status: int
) -> None:
    answer = exchange(agent, request_bytes)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    error = json.loads(body)
    assert error["code"] == status
    assert error["message"]
    assert agent.request("GET", "/health").status == 204


def test_an_early_answer_reaches_a_client_that_is_still_sending(agent: Agent) -> None:
    size = 30_000_000
    with agent.raw() as sock:
        sock.sendall(
            b"POST /nowhere HTTP/1.1\r\nhost: x\r\n" + f"content-length: {size}\r\n\r\n".encode()
        )
        sock.sendall(bytes(size))
        assert sock.recv(1024).startswith(b"HTTP/1.1 404")


def test_http_1_0_clients_get_a_closed_connection(agent: Agent) -> None:
    answer = exchange(agent, b"GET /envs HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer.lower()


def test_a_stream_ends_when_its_client_does(agent: Agent) -> None:
    connection = agent.connect()
    body = envelope(START)
    connection.request(
        "POST", "/process.Process/Start", body, {"content-type": "application/connect+json"}
    )
    connection.getresponse().read(5)
    connection.close()
    deadline = time.monotonic() + 10
    while open_connections(agent) > 0:
        assert time.monotonic() < deadline, "the server kept the connection"
        time.sleep(0.02)


def open_connections(agent: Agent) -> int:
    """Accepted connections of the agent, ours excluded."""
    established, port = "01", f"{agent.port:04X}"
    with open("/proc/net/tcp") as table:  # noqa: PTH123 - no pathlib for /proc
        rows = [line.split() for line in table.readlines()[1:]]
    return sum(row[1].endswith(f":{port}") and row[3] == established for row in rows)


def test_preflights_allow_any_header(agent: Agent) -> None:
    answer = agent.request(
        "OPTIONS",
        "/process.Process/Start",
        headers={
            "origin": "https://app.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "x-access-token, authorization",
        },
    )
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-allow-headers"] == "x-access-token, authorization"
    assert "POST" in answer.headers["access-control-allow-methods"]


def test_answers_and_errors_are_readable_for_browsers(agent: Agent) -> None:
    for path in ("/envs", "/nowhere"):
        headers = agent.request("GET", path, headers={"origin": "https://app.example"}).headers
        assert headers["access-control-allow-origin"] == "*"
        assert "Location" in headers["access-control-expose-headers"]


def test_metrics_have_all_fields(agent: Agent) -> None:
    metrics = agent.request("GET", "/metrics").json
    assert set(metrics) == {
        "ts", "cpu_count", "cpu_used_pct", "mem_total", "mem_used", "mem_cache",
        "mem_total_mib", "mem_used_mib", "disk_used", "disk_total",
    }  # fmt: skip
    assert 0 < metrics["mem_used"] < metrics["mem_total"]
    assert 0 < metrics["disk_used"] < metrics["disk_total"]


def test_gzip_is_taken_and_given_only_when_asked_for(agent: Agent) -> None:
    packed = gzip.compress(b'{"process":{"pid":4000000}}')
    answer = agent.request(
        "POST",
        "/process.Process/SendSignal",
        packed,
        {"content-type": "application/json", "content-encoding": "gzip"},
    )
    assert answer.json["message"] == "process with pid 4000000 not found"
    unknown = agent.request(
        "POST",
        "/process.Process/List",
        packed,
        {"content-type": "application/json", "content-encoding": "br"},
    )
    assert unknown.json["code"] == "unimplemented"


def test_a_gzip_bomb_is_refused(agent: Agent) -> None:
    bomb = gzip.compress(bytes(100_000_000))
    answer = agent.request(
        "POST",
        "/process.Process/List",
        bomb,
        {"content-type": "application/json", "content-encoding": "gzip"},
    )
    assert (answer.status, answer.json["code"]) == (429, "resource_exhausted")
