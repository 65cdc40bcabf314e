"""What of a sandbox's traffic is recorded and counted, and what budgets end."""

import asyncio
import os
import signal
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from intercept_lab import SECRET, Intercepted, ask, intercepted
from policy_lab import OK, Server, request

from alcove.wire.egress import EVERYTHING, EgressPolicy
from small_internet import SECONDS

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces"),
]

RECORDED = EgressPolicy(recorded=True)
ENDED = pytest.raises((OSError, EOFError))


@pytest.fixture(scope="module")
def made() -> Iterator[Intercepted]:
    with intercepted() as lab:
        yield lab


@pytest.fixture
def here(made: Intercepted, request: pytest.FixtureRequest) -> Intercepted:
    told = {"headers": {"X-Api-Key": SECRET}}
    made.answers["allowed.example"] = (200, told)
    made.lab.owner = f"i{request.node.name.replace('_', '')}"
    made.lab.seen()
    return made


@pytest.fixture
def web(made: Intercepted) -> Iterator[Server]:
    server = Server(made.lab.world)
    yield server
    server.close()


def records(here: Intercepted, count: int = 1) -> list[dict[str, Any]]:
    """So many records, when they are there: a passage is recorded at its end."""
    found: list[dict[str, Any]] = []
    until = time.monotonic() + SECONDS
    while len(found) < count and time.monotonic() < until:
        found += here.lab.seen()["records"]
        time.sleep(0.02)
    assert len(found) == count, found
    assert {record["owner"] for record in found} == {here.lab.owner}
    return found


def get(name: str, target: str = "/") -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode()


def test_an_open_sandbox_is_recorded_and_not_hindered(here: Intercepted, web: Server) -> None:
    here.set(RECORDED)
    world = here.lab.world
    with here.lab.dial(world.other, web.port) as client:
        client.sendall(request("some.example"))
        assert client.recv(100) == OK
    [record] = records(here)
    assert record["host"] == "some.example"
    assert (record["address"], record["port"], record["protocol"]) == (
        world.other,
        web.port,
        "http",
    )
    assert record["received"] == len(OK)
    assert "refused" not in record
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    plain = here.lab.dial(world.public, here.port)
    with context.wrap_socket(plain, server_hostname="sub.allowed.example") as tls:
        assert ask(tls, get("sub.allowed.example"))[0] == 200
    [record] = records(here)
    assert (record["host"], record["protocol"]) == ("sub.allowed.example", "tls")
    with here.lab.dial(world.public, web.port) as client:
        client.sendall(b"\x00\x01 neither")
        assert client.recv(100) == OK
    [record] = records(here)
    assert (record["protocol"], record["address"]) == ("other", world.public)
    assert "host" not in record


def test_requests_and_what_is_refused(here: Intercepted, web: Server) -> None:
    here.lab.names["named.example"] = here.lab.world.public
    here.set(EgressPolicy(deny=(EVERYTHING,), domains=("named.example",)))
    with here.lab.dial(here.lab.world.public, web.port) as client:
        client.sendall(request("named.example"))
        assert client.recv(100) == OK
    [record] = records(here)
    assert (record["host"], record["method"], record["status"]) == ("named.example", "GET", 200)
    with here.lab.dial(here.lab.world.public, web.port) as client, ENDED:
        client.sendall(request("evil.example"))
        assert client.recv(100) == b""
        raise EOFError
    [record] = records(here)
    assert "not among the allowed domains" in record["refused"]


def test_intercepted_requests_are_recorded_one_by_one(here: Intercepted) -> None:
    here.set(EgressPolicy(intercepted=("allowed.example",)))
    with here.tls() as client:
        for target in ("/?key=hidden", "/"):
            assert ask(client, get("allowed.example", target))[0] == 200
        ask(client, get("evil.example"))
    first, second, third = records(here, 3)
    assert (first["host"], first["method"], first["status"]) == ("allowed.example", "GET", 200)
    assert first["received"] > first["sent"] > 0
    assert "hidden" not in str(first)
    assert SECRET not in str(first)
    assert "refused" not in second
    assert (third["status"], "another host" in third["refused"]) == (421, True)


def test_a_budget_of_requests_says_so(here: Intercepted, web: Server) -> None:
    policy = EgressPolicy(intercepted=("allowed.example",), recorded=True, max_requests=2)
    here.set(policy)
    with here.tls() as client:
        assert [ask(client, get("allowed.example"))[0] for _ in range(2)] == [200, 200]
        status, said = ask(client, get("allowed.example"))
        assert (status, said["code"]) == (429, 429)
        assert "made its 2 requests" in said["message"]
    with here.lab.dial(here.lab.world.public, web.port) as client:
        client.sendall(request("some.example"))
        assert client.recv(1000).startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    # More is allowed: it goes on.
    here.set(replace(policy, max_requests=3))
    with here.tls() as client:
        assert ask(client, get("allowed.example"))[0] == 200


def test_a_budget_of_bytes_ends_what_is_under_way(here: Intercepted) -> None:
    here.set(EgressPolicy(intercepted=("allowed.example",), recorded=True, max_bytes=1_000_000))
    with here.tls() as client, ENDED:
        ask(client, get("allowed.example", "/?size=9000000"))
    with here.tls() as client:
        status, said = ask(client, get("allowed.example"))
        assert (status, "exchanged its 1000000 bytes" in said["message"]) == (429, True)
    [used] = [
        total for owner, total in here.lab.seen()["totals"].items() if owner == here.lab.owner
    ]
    assert 1_000_000 <= used[2] < 4_000_000


def test_a_gate_that_was_killed_knows_what_was_used(here: Intercepted, web: Server) -> None:
    here.lab.gatekeeper.used = lambda _owner: (5, 0, 0)
    here.set(EgressPolicy(recorded=True, max_requests=5))
    pid = int((here.lab.directory / "gate.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    asyncio.run(here.lab.gatekeeper.start())
    with here.lab.dial(here.lab.world.public, web.port) as client:
        client.sendall(request("some.example"))
        assert b" 429 " in client.recv(1000)
    here.lab.gatekeeper.used = lambda _owner: (0, 0, 0)
