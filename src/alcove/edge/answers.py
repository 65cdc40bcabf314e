"""Responses of the edge's own: errors as JSON, text or a page, and preflights of browsers.

All of them carry CORS headers, so that a page's script can read why its request failed
(contract e2b 5.2, 12.60).
"""

import html
import json
from collections.abc import Sequence
from http import HTTPStatus

from alcove.edge.errors import (
    BadRequestError,
    InternalRouteError,
    RefusalError,
    SandboxRefusalError,
)
from alcove.edge.heads import RequestHead

_CORS = (
    b"Access-Control-Allow-Origin: *",
    b"Access-Control-Allow-Methods: HEAD, GET, POST, PUT, PATCH, DELETE",
    b"Access-Control-Expose-Headers: *",
)
CLOSE = b"Connection: close"


def refuse(
    refusal: RefusalError, head: RequestHead | None, lines: Sequence[bytes]
) -> tuple[int, bytes]:
    """Status and bytes of the answer to a refused request; no head: it could not be read."""
    if head is not None and _goes_on_after_preflight(refusal, head):
        return 204, _preflight(head, lines)
    status = refusal.http_status
    if refusal.retry_after_s is not None:
        lines = [*lines, b"Retry-After: %d" % refusal.retry_after_s]
    body = refusal.body()
    if head is not None and _is_browser(head):
        content_type, content = b"text/html; charset=utf-8", _page(refusal).encode()
    elif body is None:
        content_type, content = b"text/plain; charset=utf-8", refusal.message.encode()
    else:
        content_type, content = b"application/json", _json(body)
    return status, _response(status, content_type, content, head, lines)


def health(state: dict[str, object], head: RequestHead, lines: Sequence[bytes]) -> bytes:
    return _response(200, b"application/json", _json(state), head, lines)


def _response(
    status: int,
    content_type: bytes,
    body: bytes,
    head: RequestHead | None,
    lines: Sequence[bytes],
) -> bytes:
    head_lines = [
        b"HTTP/1.1 %d %b" % (status, HTTPStatus(status).phrase.encode()),
        b"Content-Type: " + content_type,
        b"Content-Length: %d" % len(body),
        b"Cache-Control: no-store",
        *_CORS,
        *lines,
    ]
    if head is not None and head.method == b"HEAD":
        body = b""
    return b"\r\n".join(head_lines) + b"\r\n\r\n" + body


def _goes_on_after_preflight(refusal: RefusalError, head: RequestHead) -> bool:
    """A preflight never carries tokens and shows its errors to nobody; the real request does."""
    return (
        head.method == b"OPTIONS"
        and not isinstance(refusal, BadRequestError | InternalRouteError)
        and head.get(b"origin") is not None
        and head.get(b"access-control-request-method") is not None
    )


def _preflight(head: RequestHead, lines: Sequence[bytes]) -> bytes:
    allowed = (head.get(b"access-control-request-headers") or "*").encode("latin-1")
    allow = b"Access-Control-Allow-Headers: " + allowed
    return b"\r\n".join([b"HTTP/1.1 204 No Content", *_CORS, allow, *lines]) + b"\r\n\r\n"


def _is_browser(head: RequestHead) -> bool:
    if (head.get(b"sec-fetch-mode") or "").lower() == "navigate":
        return True
    wants_html = "text/html" in (head.get(b"accept") or "").lower()
    return wants_html and (head.get(b"user-agent") or "").startswith("Mozilla/")


def _json(value: dict[str, object]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _page(refusal: RefusalError) -> str:
    title = f"{refusal.http_status} {HTTPStatus(refusal.http_status).phrase}"
    sandbox = (
        f"<p>Sandbox <code>{html.escape(refusal.sandbox_id)}</code></p>"
        if isinstance(refusal, SandboxRefusalError)
        else ""
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{title}</title></head>"
        f"<body><h1>{title}</h1><p>{html.escape(refusal.message)}</p>{sandbox}</body></html>"
    )
