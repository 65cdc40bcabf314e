"""The local authority: what it signs, what it may not sign, when it begins anew."""

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from alcove.edge import tls

DOMAIN = "alcove.localhost"


def _handshake(paths: tls.TlsFiles, name: str, trust: Path) -> str | None:
    """A TLS handshake in memory; returns the agreed ALPN protocol."""
    client_context = ssl.create_default_context(cafile=str(trust))
    client_context.set_alpn_protocols(["h2", "http/1.1"])
    client_in, client_out, server_in, server_out = (ssl.MemoryBIO() for _ in range(4))
    client = client_context.wrap_bio(client_in, client_out, server_hostname=name)
    server = tls.server_context(paths).wrap_bio(server_in, server_out, server_side=True)
    open_ends = [client, server]
    while open_ends:
        for end in list(open_ends):
            try:
                end.do_handshake()
                open_ends.remove(end)
            except ssl.SSLWantReadError:
                pass
            server_in.write(client_out.read())
            client_in.write(server_out.read())
    return client.selected_alpn_protocol()


@pytest.mark.parametrize(
    "name",
    [f"49983-i1234567890.{DOMAIN}", f"api.{DOMAIN}", DOMAIN, "localhost", "127.0.0.1", "::1"],
)
def test_clients_that_trust_the_bundle_or_the_authority_connect(tmp_path: Path, name: str) -> None:
    paths = tls.ensure(tmp_path, DOMAIN)
    assert _handshake(paths, name, paths.ca) == "h2"
    assert _handshake(paths, name, paths.bundle) == "h2"


def test_other_names_are_not_served(tmp_path: Path) -> None:
    paths = tls.ensure(tmp_path, DOMAIN)
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(paths, "example.com", paths.ca)


def test_the_authority_is_worth_nothing_for_other_names(tmp_path: Path) -> None:
    paths = tls.ensure(tmp_path, DOMAIN)
    authority = tls._load(paths.ca, paths.ca.with_suffix(".key"))
    assert authority is not None
    tls._ensure_certificate(paths, authority, "example.com", datetime.now(UTC))
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree"):
        _handshake(paths, "example.com", paths.ca)


def test_a_second_call_changes_nothing(tmp_path: Path) -> None:
    paths = tls.ensure(tmp_path, DOMAIN)
    before = {path: path.read_bytes() for path in (paths.ca, paths.cert, paths.key, paths.bundle)}
    assert tls.ensure(tmp_path, DOMAIN) == paths
    assert {path: path.read_bytes() for path in before} == before


def test_keys_are_private_and_certificates_are_not(tmp_path: Path) -> None:
    paths = tls.ensure(tmp_path, DOMAIN)
    modes = [
        stat.S_IMODE(path.stat().st_mode)
        for path in (paths.ca.with_suffix(".key"), paths.key, paths.ca, paths.cert, paths.bundle)
    ]
    assert modes == [0o600, 0o600, 0o644, 0o644, 0o644]


def test_lives(tmp_path: Path) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    paths = tls.ensure(tmp_path, DOMAIN, now)
    cert = x509.load_pem_x509_certificate(paths.cert.read_bytes())
    authority = x509.load_pem_x509_certificate(paths.ca.read_bytes())
    assert cert.not_valid_after_utc - cert.not_valid_before_utc <= timedelta(days=397)
    assert cert.not_valid_before_utc <= now
    assert authority.not_valid_after_utc - now > timedelta(days=3640)


def test_a_certificate_is_renewed_before_it_ends_by_the_same_authority(tmp_path: Path) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    paths = tls.ensure(tmp_path, DOMAIN, now)
    authority, cert = paths.ca.read_bytes(), paths.cert.read_bytes()
    tls.ensure(tmp_path, DOMAIN, now + timedelta(days=360))
    assert paths.cert.read_bytes() == cert
    tls.ensure(tmp_path, DOMAIN, now + timedelta(days=367))
    assert paths.cert.read_bytes() != cert
    assert paths.ca.read_bytes() == authority


def test_another_domain_needs_another_authority(tmp_path: Path) -> None:
    paths = tls.ensure(tmp_path, DOMAIN)
    before = paths.ca.read_bytes()
    tls.ensure(tmp_path, "other.localhost")
    assert paths.ca.read_bytes() != before
    assert _handshake(paths, "80-i1.other.localhost", paths.bundle) == "h2"
    assert before.strip() not in paths.bundle.read_bytes()


@pytest.mark.parametrize("victim", ["ca/ca.pem", "ca/ca.key", "tls/cert.pem", "tls/key.pem"])
@pytest.mark.parametrize("damage", ["gone", "empty", "of another pair", "half"])
def test_damage_of_any_file_is_repaired(tmp_path: Path, victim: str, damage: str) -> None:
    """Also what a crash between two writes leaves: a key that does not fit its certificate."""
    tls.ensure(tmp_path / "other", DOMAIN)
    tls.ensure(tmp_path, DOMAIN)
    path = tmp_path / victim
    match damage:
        case "gone":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "half":
            path.write_bytes(path.read_bytes()[:150])
        case _:
            path.write_bytes((tmp_path / "other" / victim).read_bytes())
    paths = tls.ensure(tmp_path, DOMAIN)
    assert _handshake(paths, f"80-i1.{DOMAIN}", paths.bundle) == "h2"


def test_the_bundle_keeps_the_hosts_authorities_and_never_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = tls.ensure(tmp_path / "host", "elsewhere.localhost").ca
    monkeypatch.setenv("SSL_CERT_FILE", str(host))
    paths = tls.ensure(tmp_path, DOMAIN)
    text = paths.bundle.read_bytes()
    assert text.count(b"BEGIN CERTIFICATE") == 2
    assert host.read_bytes().strip() in text
    # As after `eval "$(alcove env)"`: the default bundle is our own now.
    monkeypatch.setenv("SSL_CERT_FILE", str(paths.bundle))
    tls.ensure(tmp_path, DOMAIN)
    again = paths.bundle.read_bytes()
    assert again.count(paths.ca.read_bytes().strip()) == 1
