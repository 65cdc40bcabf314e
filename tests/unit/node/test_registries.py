"""Images of registries: names, addresses, credentials, and the words of refusals."""

import asyncio
import base64
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from alcove.node import apt_sources
from alcove.node.building import archives, oci, packaged
from alcove.node.building.ecr import signed_headers
from alcove.node.building.packaged import Packaged
from alcove.node.building.registries import (
    Credentials,
    ImageError,
    Reference,
    UnreachableError,
    auth_file,
    check_address,
    read_reference,
)
from alcove.node.run import CommandError
from alcove.storage import Storage

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
    error = oci._refusal("r.io/x", CommandError(["skopeo", "/secret"], 1, said))
    assert words in str(error)
    assert "/secret" not in str(error)


@pytest.mark.parametrize(
    ("said", "known"),
    [("dial tcp 1.2.3.4:443: connect: connection refused", True), ("manifest unknown", False)],
)
def test_that_nobody_answers_is_told_from_a_refusal(said: str, known: bool) -> None:
    error = oci._refusal("r.io/x", CommandError(["skopeo"], 1, said))
    assert isinstance(error, UnreachableError) is known


@pytest.mark.parametrize(
    ("image", "found"),
    [
        ("debian", Packaged("debian", "trixie")),
        ("debian:12-slim", Packaged("debian", "bookworm")),
        ("docker.io/library/debian:bookworm", Packaged("debian", "bookworm")),
        ("ubuntu:24.04", Packaged("ubuntu", "noble")),
        ("debian:8", None),
        ("ghcr.io/library/debian:12", None),
        ("me/debian:12", None),
        (f"debian@{DIGEST}", None),
    ],
)
def test_names_that_packages_can_stand_for(image: str, found: Packaged | None) -> None:
    assert packaged.find(image) == found


def test_the_release_of_another_distribution_cannot_be_made_here() -> None:
    other = "ubuntu" if apt_sources.read_machine().distribution == "debian" else "debian"
    with pytest.raises(ImageError, match="has no package sources of it"):
        packaged.recipe(Packaged(other, "noble"))


def archive(*names: str, size: int = 5) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(b"x" * size))
    return written.getvalue()


@pytest.mark.parametrize(
    ("content", "kinds"),
    [
        (archive("./oci-layout", "index.json"), ["oci-archive"]),
        (archive("a" * 90, "manifest.json", size=5000), ["docker-archive"]),
        (archive("blobs", "oci-layout", "manifest.json"), ["oci-archive", "docker-archive"]),
    ],
)
def test_what_an_archive_is(tmp_path: Path, content: bytes, kinds: list[str]) -> None:
    (tmp_path / "a").write_bytes(content)
    assert archives.kinds(tmp_path / "a") == kinds


@pytest.mark.parametrize(
    "content",
    [b"", b"text", archive("etc/passwd"), gzip.compress(archive("oci-layout")), b"\0" * 4096],
    ids=["nothing", "text", "other-files", "packed", "zeros"],
)
def test_what_is_no_archive_of_an_image(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ImageError, match="the archive is no image: it must be a tar"):
        archives.kinds(tmp_path / "a")


def test_an_archive_is_what_its_name_says(tmp_path: Path) -> None:
    async def scenario() -> None:
        storage = Storage("", tmp_path)
        await storage.put("key", parts(b"content"))
        right = hashlib.sha256(b"content").hexdigest()
        await archives.receive(storage, "key", right, tmp_path / "into")
        assert (tmp_path / "into").read_bytes() == b"content"
        with pytest.raises(ImageError, match="is damaged: what was sent has the SHA-256"):
            await archives.receive(storage, "key", "0" * 64, tmp_path / "into")
        with pytest.raises(ImageError, match="not in the object store"):
            await archives.receive(storage, "other", right, tmp_path / "into")

    asyncio.run(scenario())


async def parts(content: bytes) -> AsyncIterator[bytes]:
    yield content


def test_the_environment_of_an_image() -> None:
    config = {"Env": ["A=1", "B=x=y", "broken", "=nothing"]}
    assert oci._environment(config) == {"A": "1", "B": "x=y"}
    assert oci._environment({}) == {}
