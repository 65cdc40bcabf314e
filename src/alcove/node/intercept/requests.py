"""Whether an intercepted request may go on, and what is put into it. Pure.

The guest is hostile: a request that could be for somebody else, or that could take out what is put
in, is refused or cleaned.
"""

from collections.abc import Mapping
from urllib.parse import urlsplit

from mitmproxy.http import Headers, Request

_HOP_BY_HOP = frozenset({"close", "keep-alive", "upgrade", "http2-settings"})
"""What a client may say of its own connection; other headers named there could be dropped."""


class MisdirectedError(Exception):
    """The request is not for the host that the connection is for, or must not have secrets."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def check(request: Request, name: str, port: int) -> None:
    """Raises MisdirectedError unless the request is for `name` and for nobody else."""
    if request.method in {"CONNECT", "TRACE"}:
        raise MisdirectedError(
            405, f"{request.method} is refused for {name}: its requests are given headers"
        )
    hosts = request.headers.get_all("host")
    if len(hosts) > 1:
        raise MisdirectedError(400, "the request has several Host headers")
    stated = [*hosts, *([request.authority] if request.authority else [])]
    if not stated:
        raise MisdirectedError(400, "the request names no host")
    for authority in stated:
        if not _is(authority, name, port):
            raise MisdirectedError(
                421,
                f"the request is for another host than the TLS handshake, which was for {name}",
            )


def put_in(request: Request, headers: Mapping[str, str]) -> None:
    """Have the headers be in the request, and nothing that could stand in for them."""
    taken = {_plain(name) for name in headers}
    _remove(request.headers, taken)
    connection = request.headers.get_all("connection")
    if connection:
        kept = [
            word
            for word in (text.strip() for text in ",".join(connection).split(","))
            if word.lower() in _HOP_BY_HOP
        ]
        request.headers.set_all("connection", [", ".join(kept)] if kept else [])
    for name, value in headers.items():
        request.headers[name.lower() if request.is_http2 else name] = value


def clean_trailers(request: Request, names: Mapping[str, str]) -> None:
    """Headers that come after the body may not be those that were put in either."""
    if request.trailers is not None:
        _remove(request.trailers, {_plain(name) for name in names})


def _remove(headers: Headers, names: set[str]) -> None:
    for name in {name for name in headers if _plain(name) in names}:
        headers.set_all(name, [])


def _plain(name: str) -> str:
    """As servers see it that make variables of headers."""
    return name.lower().replace("_", "-")


def _is(authority: str, name: str, port: int) -> bool:
    try:
        parts = urlsplit(f"//{authority}")
        host, stated = parts.hostname, parts.port
    except ValueError:
        return False
    if host is None or "@" in authority or "/" in authority:
        return False
    return host.lower().removesuffix(".") == name and stated in {None, port}
