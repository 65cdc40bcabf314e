"""Routing: whom a head is for; and that nothing makes it fail in another way than it should."""

import contextlib
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.edge.errors import BadRouteError, InternalRouteError, RefusalError
from alcove.edge.heads import parse_request
from alcove.edge.routing import Api, Own, Router, Target
from alcove.wire.hosts import GUEST_PORT, INTERNAL_ROUTES, PortOfSandbox
from alcove.wire.ids import SandboxId

ROUTER = Router("api.alcove.localhost", frozenset({"edge.lan"}))
ID = "i0123456789"
ONE = PortOfSandbox(SandboxId(ID), 8000)


def resolve(host: str, path: str = "/", **headers: str) -> Target:
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}"]
    lines += [f"E2b-Sandbox-{name}: {value}" for name, value in headers.items()]
    return ROUTER.resolve(parse_request("\r\n".join(lines).encode() + b"\r\n"))


@pytest.mark.parametrize(
    "host",
    [f"8000-{ID}.alcove.localhost", f"8000-{ID}.x:3002", f"8000-{ID}-client.x",
     f"8000-{ID.upper()}.X"],
)  # fmt: skip
def test_host_labels(host: str) -> None:
    assert resolve(host, Id="i9", Port="1") == ONE


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:1", "10.0.0.1:80", "[::1]", "[::1]:80", "sandbox.e2b.app",
     "edge.lan:1"],
)  # fmt: skip
def test_hosts_with_headers(host: str) -> None:
    assert resolve(host, Id=ID, Port="8000") == ONE
    assert resolve(host, Id=f"{ID}-client", Port="8000") == ONE
    with pytest.raises(BadRouteError, match=r"\Amissing header\Z"):
        resolve(host, Id=ID)


@pytest.mark.parametrize(
    "host", ["x", "localhost.evil.com", "1.2.3", "notsandbox.e2b.app", "127.1"]
)
def test_headers_do_not_count_elsewhere(host: str) -> None:
    with pytest.raises(BadRouteError, match="Invalid host"):
        resolve(host, Id=ID, Port="8000")


def test_api_and_health() -> None:
    assert resolve("API.alcove.localhost:443", "/sandboxes") is Api.CONTROL
    assert resolve("api.alcove.localhost.", "/health") is Api.CONTROL
    assert resolve("localhost:3002", "/health") is Own.HEALTH
    assert resolve("alcove.localhost", "/health") is Own.HEALTH
    with pytest.raises(BadRouteError, match="Invalid sandbox port"):
        resolve(f"0-{ID}.alcove.localhost", "/health")


@given(
    st.sampled_from(sorted(INTERNAL_ROUTES)),
    st.lists(st.booleans(), min_size=9, max_size=9),
    st.integers(0, 4),
    st.sampled_from(["", "/", "/x", "?x", "%20", "%00", ";a", "/.", "/..", "%2f"]),
    st.sampled_from(["/", "//", "/./", "/x/../", "/%2e%2e/", "/%2f", "/%5c", "/a;b/"]),
)
def test_no_spelling_of_an_internal_route_reaches_the_guest(
    name: str, upper: list[bool], encodings: int, end: str, start: str
) -> None:
    spelt = "".join(c.upper() if up else c for c, up in zip(name, upper, strict=False))
    if encodings:
        spelt = "".join(f"%{ord(c):02X}" for c in spelt)
    for _ in range(encodings - 1):
        spelt = quote(spelt)
    with pytest.raises(InternalRouteError):
        resolve(f"{GUEST_PORT}-{ID}.x", start + spelt + end)
    assert isinstance(resolve(f"8000-{ID}.x", start + spelt + end), PortOfSandbox)


@pytest.mark.parametrize(
    "path",
    [
        "/health", "/files?path=/init", "/files/compose", "/process.Process/Start", "/initial",
        "/metrics", "/filesystem.Filesystem/ListDir", "/envs",
        "/files?path=%2Finit&signature=v1_a/b",
    ],
)  # fmt: skip
def test_public_routes_of_the_guest_pass(path: str) -> None:
    assert resolve(f"{GUEST_PORT}-{ID}.x", path) == PortOfSandbox(SandboxId(ID), GUEST_PORT)


@given(
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=40),
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=40),
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=40),
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=10),
)
def test_nothing_fails_otherwise_than_by_refusal(
    host: str, path: str, sandbox_id: str, port: str
) -> None:
    head = (
        f"GET /{path} HTTP/1.1\r\nHost: {host}\r\nE2b-Sandbox-Id: {sandbox_id}\r\n"
        f"E2b-Sandbox-Port: {port}\r\n"
    ).encode("latin-1")
    with contextlib.suppress(RefusalError):
        ROUTER.resolve(parse_request(head))
