"""Web servers in the small internet, with and without TLS; they say whom they were asked for."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from certificates import self_signed
from small_internet import SmallInternet, name_server, small_internet


@dataclass(frozen=True)
class Web:
    world: SmallInternet
    http_port: int
    https_port: int

    @property
    def name_server(self) -> str:
        return self.world.public


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = f"hello {self.headers['Host']}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def web(directory: Path) -> Iterator[Web]:
    """`allowed.example` and `sub.allowed.example` on one address, `other.example` on another."""
    with small_internet() as world:
        names = {
            "allowed.example": world.public,
            "sub.allowed.example": world.public,
            "other.example": world.other,
        }
        servers = [_server(world, None), _server(world, self_signed(directory))]
        for server in servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        ports = [int(server.socket.getsockname()[1]) for server in servers]
        with name_server(world, names):
            try:
                yield Web(world, *ports)
            finally:
                for server in servers:
                    server.shutdown()
                    server.server_close()


def _server(world: SmallInternet, certificate: Path | None) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("", 0), _Handler, bind_and_activate=False)
    server.socket.close()
    listening = world.listener()
    listening.settimeout(None)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        listening = context.wrap_socket(listening, server_side=True, do_handshake_on_connect=False)
    server.socket = listening
    return server
