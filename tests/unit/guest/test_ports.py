"""Loopback-only services made reachable, against a real agent and real listeners."""

import os
import socket
import subprocess
import time

import pytest
from guest_agent import Agent

from alcove.guest.ports import _own_address

SERVICE = """
import socket, sys, threading
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
server = socket.create_server((sys.argv[1], 0), family=family)
print(server.getsockname()[1], flush=True)
while True:
    connection, _ = server.accept()
    with connection:
        received = b""
        while data := connection.recv(65536):
            received += data
        connection.sendall(received[::-1])
"""

own = _own_address()
with_address = pytest.mark.skipif(own is None, reason="this machine has only loopback")


class Service:
    def __init__(self, address: str) -> None:
        self.process = subprocess.Popen(
            ["python3", "-c", SERVICE, address], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def forward(agent: Agent, port: object) -> bool:
    body = f'{{"port": {port}}}'.encode()
    answer = agent.request("POST", "/forward", body)
    assert answer.status == 200, answer.body
    return bool(answer.json["open"])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@with_address
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_loopback_service_becomes_reachable_and_goes_with_its_service(
    agent: Agent, address: str
) -> None:
    service = Service(address)
    try:
        for _ in range(2):
            assert forward(agent, service.port)
        data = os.urandom(500_000)
        with socket.create_connection((own, service.port), timeout=10) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            received = b""
            while part := client.recv(65536):
                received += part
        assert received == data[::-1]
    finally:
        service.stop()
    # The port is free for a service that binds all addresses.
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_server(("0.0.0.0", service.port)).close()
            break
        except OSError:
            assert time.monotonic() < deadline, "the relay kept the port"
            time.sleep(0.1)
    assert not forward(agent, service.port)


def test_a_service_on_all_addresses_needs_no_relay(agent: Agent) -> None:
    service = Service("0.0.0.0")
    try:
        assert forward(agent, service.port)
        assert forward(agent, service.port)
    finally:
        service.stop()


def test_a_port_nobody_listens_on_is_closed(agent: Agent) -> None:
    assert not forward(agent, free_port())


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"port":0}', b'{"port":65536}', b'{"port":"x"}', b'{"port":true}']
)
def test_malformed_requests_are_refused(agent: Agent, body: bytes) -> None:
    assert agent.request("POST", "/forward", body).json["code"] == 400
