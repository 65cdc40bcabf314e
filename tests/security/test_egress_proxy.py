"""All TCP of a sandbox through a SOCKS5 proxy in the small internet; its rules still hold."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace

import pytest
from intercept_lab import SECRET, Intercepted, ask, intercepted
from policy_lab import OK, Server, request

from alcove.wire.egress import EVERYTHING, EgressPolicy, Proxy
from small_internet import datagrams, in_netns

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces"),
]


@dataclass
class SocksServer:
    """RFC 1928 and 1929 with one user; knows the names of the world by itself."""

    world: Intercepted
    port: int = 0
    asked: list[tuple[str, int]] = field(default_factory=list)
    answer: int = 0

    def serve(self) -> None:
        door = self.world.lab.world.listener()
        door.settimeout(None)
        self.port = door.getsockname()[1]

        def accept() -> None:
            while True:
                client, _ = door.accept()
                threading.Thread(target=self._client, args=(client,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()

    def _client(self, client: socket.socket) -> None:
        with suppress(OSError), client:
            methods = client.recv(client.recv(2)[1])
            if 2 not in methods:
                client.sendall(b"\x05\xff")
                return
            client.sendall(b"\x05\x02")
            client.recv(1)
            user = client.recv(client.recv(1)[0])
            password = client.recv(client.recv(1)[0])
            known = (user, password) == (b"user", b"pass")
            client.sendall(b"\x01\x00" if known else b"\x01\x01")
            if not known:
                return
            *_, kind = client.recv(4)
            whom = client.recv(client.recv(1)[0]) if kind == 3 else client.recv(4)
            host = whom.decode() if kind == 3 else socket.inet_ntoa(whom)
            port = int.from_bytes(client.recv(2))
            self.asked.append((host, port))
            client.sendall(b"\x05" + bytes([self.answer]) + b"\x00\x01" + bytes(6))
            if self.answer:
                return
            lab = self.world.lab
            server = in_netns(
                lab.world.netns,
                lambda: socket.create_connection((lab.names.get(host, host), port)),
            )
            threading.Thread(target=_pump, args=(client, server), daemon=True).start()
            _pump(server, client)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(65536):
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def made() -> Iterator[tuple[Intercepted, SocksServer, Server]]:
    with intercepted() as lab:
        socks = SocksServer(lab)
        socks.serve()
        server = Server(lab.lab.world)
        yield lab, socks, server
        server.close()


@dataclass
class Here:
    lab: Intercepted
    socks: SocksServer
    web: Server
    policy: EgressPolicy

    def get(self, host: str, address: str = "") -> bytes:
        """What comes back; empty when it is refused."""
        with self.lab.lab.dial(address or self.lab.lab.world.public, self.web.port) as client:
            try:
                client.sendall(request(host))
                return client.recv(1000)
            except ConnectionError:
                return b""


@pytest.fixture
def here(made: tuple[Intercepted, SocksServer, Server]) -> Here:
    lab, socks, web = made
    socks.asked.clear()
    socks.answer = 0
    lab.answers["allowed.example"] = (200, {"headers": {"X-Api-Key": SECRET}})
    proxy = Proxy(lab.lab.world.other, socks.port, "user", "pass")
    return Here(lab, socks, web, EgressPolicy(proxy=proxy))


def test_all_tcp_goes_through_it_and_nothing_else_goes_out(here: Here) -> None:
    here.lab.set(here.policy)
    world = here.lab.lab.world
    assert here.get("some.example") == OK
    assert here.socks.asked == [(world.public, here.web.port)]
    with datagrams(world.netns, 4433, world.public) as server:
        server.settimeout(0.5)
        with datagrams(here.lab.lab.guest.netns) as client, suppress(ConnectionError):
            client.sendto(b"past the proxy", (world.public, 4433))
        with pytest.raises(TimeoutError):
            server.recv(100)


def test_allowed_names_are_asked_by_name_and_others_not_at_all(here: Here) -> None:
    here.lab.set(replace(here.policy, deny=(EVERYTHING,), domains=("allowed.example",)))
    assert here.get("allowed.example") == OK
    assert here.socks.asked == [("allowed.example", here.web.port)]
    assert here.get("evil.example") == b""
    assert len(here.socks.asked) == 1


def test_denied_addresses_stay_denied(here: Here) -> None:
    public = here.lab.lab.world.public
    here.lab.set(replace(here.policy, deny=(f"{public}/32",)))
    with pytest.raises(ConnectionRefusedError):
        here.lab.lab.dial(public, here.web.port)
    assert here.get("some.example", here.lab.lab.world.other) == OK
    assert here.socks.asked == [(here.lab.lab.world.other, here.web.port)]


def test_rules_hold_before_it(here: Here) -> None:
    here.lab.set(replace(here.policy, intercepted=("allowed.example",)))
    with here.lab.tls() as client:
        status, said = ask(client, b"GET / HTTP/1.1\r\nHost: allowed.example\r\n\r\n")
    assert (status, said["headers"]["x-api-key"]) == (200, SECRET)
    assert here.socks.asked == [(here.lab.lab.world.public, here.lab.port)]


def test_a_proxy_that_refuses_is_said_in_the_record(here: Here) -> None:
    here.lab.lab.owner = "iproxy"
    here.socks.answer = 2
    here.lab.set(here.policy)
    assert here.get("some.example") == b""
    wrong = Proxy(here.lab.lab.world.other, here.socks.port, "user", "wrong-password")
    here.lab.set(EgressPolicy(proxy=wrong))
    assert here.get("some.example") == b""
    first, second = (one["refused"] for one in here.lab.lab.seen()["records"])
    assert "not allowed by its rules" in first
    assert "refuses the user name or the password" in second
    assert "wrong-password" not in first + second


@pytest.mark.parametrize("private", ["10.0.0.1", "127.0.0.1", "169.254.169.254", "rebound.example"])
def test_a_private_proxy_is_never_dialled(here: Here, private: str) -> None:
    here.lab.set(EgressPolicy(proxy=Proxy(private, here.socks.port)))
    assert here.get("some.example") == b""
    assert here.socks.asked == []


def test_without_the_proxy_nothing_goes_out_and_a_change_cuts(here: Here) -> None:
    here.lab.set(here.policy)
    with here.lab.lab.dial(here.lab.lab.world.public, here.web.port) as client:
        client.sendall(request("some.example"))
        assert client.recv(1000) == OK
        away = Proxy(here.lab.lab.world.other, 1)
        here.lab.set(EgressPolicy(proxy=away))
        with pytest.raises(ConnectionError):
            client.sendall(request("some.example"))
            if not client.recv(1000):
                raise ConnectionError
    assert here.get("some.example") == b""
