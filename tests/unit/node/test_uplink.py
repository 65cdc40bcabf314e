import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from alcove.node.uplink import extra_certificates


def _certificate(name: str) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    begin = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + dt.timedelta(days=3650))
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path, Path]:
    added, packaged = tmp_path / "added", tmp_path / "packaged"
    (packaged / "mozilla").mkdir(parents=True)
    added.mkdir()
    return tmp_path / "bundle.crt", added, packaged


def test_only_what_the_distribution_did_not_bring_is_extra(
    places: tuple[Path, Path, Path],
) -> None:
    bundle, added, packaged = places
    ordinary, company, only_added = map(_certificate, ("ordinary", "company", "only added"))
    (packaged / "mozilla/ordinary.crt").write_text(ordinary)
    bundle.write_text("# a comment\n" + ordinary + company)
    (added / "company.crt").write_text(company.replace("\n", "\r\n"))
    (added / "other.crt").write_text(only_added)
    extra = extra_certificates(*places)
    assert extra.count("BEGIN CERTIFICATE") == 2
    assert ordinary not in extra
    assert only_added in extra


def test_without_the_distributions_list_the_bundle_is_not_taken_for_extra(
    places: tuple[Path, Path, Path],
) -> None:
    bundle, added, _ = places
    company = _certificate("company")
    bundle.write_text(_certificate("ordinary") + company)
    (added / "company.crt").write_text(company)
    assert extra_certificates(*places) == company


def test_nothing_and_damaged_files_are_no_certificates(places: tuple[Path, Path, Path]) -> None:
    _, added, _ = places
    assert extra_certificates(*places) == ""
    (added / "cut.crt").write_text("-----BEGIN CERTIFICATE-----\nabc")
    (added / "odd.crt").write_bytes(
        b"\xff\x00-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----"
    )
    assert extra_certificates(*places) == ""
