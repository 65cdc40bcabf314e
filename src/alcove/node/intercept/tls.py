"""mitmproxy's own TLS settings, with the authority of one sandbox in place of one for all."""

import functools
import json
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from mitmproxy import certs, ctx
from mitmproxy.addons.tlsconfig import TlsConfig
from mitmproxy.options import Options

from alcove.node.intercept.authorities import path_of

_KEPT = 256
"""Sandboxes whose authorities are held ready, each with the certificates it has issued."""


class NoAuthorityError(Exception):
    """The slot has no authority, so nothing may be intercepted for it."""


class Authorities:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read = functools.lru_cache(maxsize=_KEPT)(self._load)

    def of(self, slot: int) -> TlsConfig:
        """How TLS is spoken for a sandbox. Raises NoAuthorityError."""
        try:
            status = path_of(self._directory, slot).stat()
            return self._read(slot, (status.st_ino, status.st_mtime_ns))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NoAuthorityError(f"slot {slot}: {error}") from error

    def _load(self, slot: int, version: tuple[int, int]) -> TlsConfig:
        del version
        stored = json.loads(path_of(self._directory, slot).read_bytes())
        key = load_pem_private_key(stored["key"].encode(), None)
        config = TlsConfig()
        config.certstore = certs.CertStore(
            key,  # type: ignore[arg-type]  # annotated for RSA; it signs, which this one can as well
            certs.Cert.from_pem(stored["certificate"].encode()),
            None,
            certs.DHParams(b""),
        )
        return config


def make_options(trusted: Path) -> Options:
    """The settings of mitmproxy's core. `trusted`: who may vouch for servers, PEM."""
    options = Options(
        # Names come from the handshake only: what a server's certificate says is not copied.
        upstream_cert=False,
        ssl_insecure=False,
        ssl_verify_upstream_trusted_ca=str(trusted),
        http2=True,
        # Messages would be collected in memory.
        websocket=False,
        rawtcp=True,
    )
    TlsConfig().load(_Adder(options))  # type: ignore[no-untyped-call]  # mitmproxy's
    for name, kind, default in (
        ("connection_strategy", str, "eager"),
        ("stream_large_bodies", str | None, None),
        ("body_size_limit", str | None, None),
        ("store_streamed_bodies", bool, False),
        ("keep_host_header", bool, True),
        ("proxy_debug", bool, False),
        ("normalize_outbound_headers", bool, True),
        ("validate_inbound_headers", bool, True),
        ("http2_ping_keepalive", int, 0),
    ):
        if name not in options:
            options.add_option(name, kind, default, name)
    ctx.options = options
    return options


class _Adder:
    """What addons declare their options to."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def add_option(
        self,
        name: str,
        typespec: type,
        default: object,
        help: str,  # noqa: A002 - mitmproxy's name for it
        choices: object = None,
    ) -> None:
        self._options.add_option(name, typespec, default, help, choices)  # type: ignore[arg-type]
