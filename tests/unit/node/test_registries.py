"""Images of registries: names, addresses, credentials, and the words of refusals."""

import asyncio
import base64
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from alcove.node.building import oci
from alcove.node.building.ecr import signed_headers
from alcove.node.building.registries import (
    Credentials,
    ImageError,
    Reference,
    auth_file,
    check_address,
    read_reference,
)
from alcove.node.run import CommandError

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("debian", "docker.io/library/debian:latest"),
        ("ubuntu:22.04", "docker.io/library/ubuntu:22.04"),
        ("oven/bun:1", "docker.io/oven/bun:1"),
        ("ghcr.io/a/b/c:x", "ghcr.io/a/b/c:x"),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        (f"r.io/x@{DIGEST}", f"r.io/x@{DIGEST}"),
        (f"r.io/x:tag@{DIGEST}", f"r.io/x@{DIGEST}"),
    ],
)
def test_names(text: str, whole: str) -> None:
    assert str(read_reference(text)) == whole


@pytest.mark.parametrize(
    "text",
    [
        "", ":x", "UPPER", "a//b", "a/../b", "-x", "a b", "a:b:c", "x@sha256:1", "r.io/", "x:",
        "r.io/x --authfile=/etc/shadow", "host:port/x", "x@", "a" * 300, "http://r.io/x",
    ],
)  # fmt: skip
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(ImageError, match="is not the name of an image"):
        read_reference(text)


@pytest.mark.parametrize("host", ["127.0.0.1:5000", "10.0.0.1", "169.254.169.254", "localhost"])
def test_private_addresses_are_refused_unless_trusted(host: str) -> None:
    reference = Reference(host, "x")
    with pytest.raises(ImageError, match="private address"):
        asyncio.run(check_address(reference, []))
    assert asyncio.run(check_address(reference, ["other", host])) is True


def test_a_public_address_is_reached_with_tls() -> None:
    assert asyncio.run(check_address(Reference("8.8.8.8", "x"), ["127.0.0.1:5000"])) is False


@pytest.mark.parametrize(
    ("given", "login"),
    [
        ({"type": "registry", "username": "u", "password": "p"}, ("u", "p")),
        ({"type": "gcp", "serviceAccountJson": "{}"}, ("_json_key", "{}")),
    ],
)
def test_credentials(given: dict[str, str], login: tuple[str, str]) -> None:
    credentials = Credentials.from_json(given)
    assert asyncio.run(credentials.login(Reference("r.io", "x"))) == login
    assert "password" not in repr(credentials)
    written = json.loads(auth_file(Reference("r.io", "x"), *login))
    secret = base64.b64decode(written["auths"]["r.io"]["auth"]).decode()
    assert secret == ":".join(login)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"type": "registry", "username": "u"}, "incomplete"),
        ({"type": "gcp"}, "incomplete"),
        ({"type": "aws", "awsAccessKeyId": "x"}, "incomplete"),
        ({}, "incomplete"),
        (
            {
                "type": "aws",
                "awsAccessKeyId": "x",
                "awsSecretAccessKey": "y",
                "awsRegion": "evil.example/#",
            },
            "is not the name of an AWS region",
        ),
    ],
)
def test_credentials_that_will_not_do(given: dict[str, str], words: str) -> None:
    with pytest.raises(ImageError, match=words):
        asyncio.run(Credentials.from_json(given).login(Reference("r.io", "x")))


def test_the_signature_for_amazon_covers_key_time_and_region() -> None:
    at = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
    made = signed_headers("id", "secret", "eu-west-1", "host", at)
    assert made["x-amz-date"] == "20261127T120000Z"
    start = "AWS4-HMAC-SHA256 Credential=id/20261127/eu-west-1/ecr/aws4_request, SignedHeaders="
    assert made["authorization"].startswith(f"{start}content-type;host;x-amz-date;x-amz-target, ")
    others = [
        signed_headers("id", "other", "eu-west-1", "host", at),
        signed_headers("id", "secret", "us-east-1", "host", at),
        signed_headers("id", "secret", "eu-west-1", "host", at.replace(hour=13)),
    ]
    assert made["authorization"] not in [other["authorization"] for other in others]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("... reading manifest v1 in x: manifest unknown", "there is no such image"),
        ("... unauthorized: authentication required", "other credentials"),
        ("... dial tcp 1.2.3.4:443: connect: connection refused", "does not answer"),
        ("no image found in manifest list for architecture s390x", "no variant"),
        ("write /x: no space left on device", "larger than the template's disk"),
        ("something else\nat the end", "at the end"),
    ],
)
def test_refusals_in_words(said: str, words: str) -> None:
    error = oci._refusal(Reference("r.io", "x"), CommandError(["skopeo", "/secret"], 1, said))
    assert words in str(error)
    assert "/secret" not in str(error)


def test_an_unpacked_root_has_no_devices_and_links_lead_nowhere(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "dev").mkdir(parents=True)
    (root / "etc").mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "tmp").symlink_to(outside)
    (root / "file").write_bytes(b"x" * 8192)
    if os.geteuid() == 0:
        os.mknod(root / "dev/null", 0o666 | 0o020000, os.makedev(1, 3))
    assert oci._settle(root) >= 8192
    assert list((root / "dev").iterdir()) == []
    assert (root / ".alcove").is_dir()
    assert list(outside.iterdir()) == []


def test_the_environment_of_an_image() -> None:
    config = {"Env": ["A=1", "B=x=y", "broken", "=nothing"]}
    assert oci._environment(config) == {"A": "1", "B": "x=y"}
    assert oci._environment({}) == {}
