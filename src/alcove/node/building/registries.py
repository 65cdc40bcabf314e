"""Images of registries: what they are called, whence they are fetched, with which credentials.

A team names the registry, and it is this machine that connects: addresses that are not public are
refused, unless the node's settings name the registry. Those may also be reached without TLS.
"""

import asyncio
import base64
import ipaddress
import json
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from alcove.node.building.ecr import EcrError, ecr_password

_HUB = "docker.io"
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_HOST = re.compile(r"[A-Za-z0-9.-]+(?::\d{1,5})?\Z")
_LONGEST_NAME = 255
_GCP_USER = "_json_key"
_AWS_USER = "AWS"


class ImageError(Exception):
    """An image cannot be used as a base; the message is for the template's author.

    ImageError
    └── UnreachableError     nobody answers where its registry should be
    """


class UnreachableError(ImageError):
    pass


@dataclass(frozen=True, slots=True)
class Reference:
    """host[:port]/path and a tag or a digest."""

    host: str
    path: str
    tag: str = "latest"
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.host}/{self.path}" + (f"@{self.digest}" if self.digest else f":{self.tag}")

    def at(self, digest: str) -> str:
        return f"{self.host}/{self.path}@{digest}"


def read_reference(text: str) -> Reference:
    """What Docker means by an image name. Raises ImageError."""
    name, _, digest = text.strip().partition("@")
    rest, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        rest, tag = name, ""
    first, slash, path = rest.partition("/")
    wrong = name.endswith(":")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        first, path = _HUB, rest if slash else f"library/{rest}"
    good = (
        not wrong
        and _HOST.match(first)
        and len(path) <= _LONGEST_NAME
        and all(map(_COMPONENT.match, path.split("/")))
        and (not tag or _TAG.match(tag))
        and ("@" not in text or _DIGEST.match(digest))
    )
    if not good:
        raise ImageError(f"{text[:200]!r} is not the name of an image: write host/name:tag")
    return Reference(first, path, tag or "latest", digest)


@dataclass(frozen=True, slots=True)
class Credentials:
    """As clients give them (contract e2b 9.3); never written down."""

    kind: str
    values: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        values = {key: value for key, value in data.items() if isinstance(value, str)}
        return cls(values.pop("type", ""), values)

    async def login(self, reference: Reference) -> tuple[str, str]:
        """User and password for the registry. Raises ImageError."""
        values = self.values
        match self.kind:
            case "registry" if values.get("username") and values.get("password"):
                return values["username"], values["password"]
            case "gcp" if values.get("serviceAccountJson"):
                return _GCP_USER, values["serviceAccountJson"]
            case "aws" if values.get("awsAccessKeyId") and values.get("awsSecretAccessKey"):
                try:
                    return _AWS_USER, await ecr_password(
                        values["awsAccessKeyId"],
                        values["awsSecretAccessKey"],
                        values.get("awsRegion") or "us-east-1",
                    )
                except EcrError as error:
                    raise ImageError(f"{reference.host}: {error}") from error
            case _:
                raise ImageError(
                    f"the credentials for {reference.host} are incomplete: registry needs username"
                    " and password, aws awsAccessKeyId, awsSecretAccessKey and awsRegion, gcp"
                    " serviceAccountJson"
                )


def auth_file(reference: Reference, user: str, password: str) -> str:
    """Content of a file of credentials as skopeo reads them (containers-auth.json)."""
    secret = base64.b64encode(f"{user}:{password}".encode()).decode()
    return json.dumps({"auths": {reference.host: {"auth": secret}}})


async def check_address(reference: Reference, trusted: Iterable[str]) -> bool:
    """Whether the registry may be reached without TLS. Raises ImageError where it may not at all.

    `trusted`: hosts, with their ports, of the node's settings.
    """
    if reference.host in trusted:
        return True
    host, _, port = reference.host.partition(":")
    name = "registry-1.docker.io" if reference.host == _HUB else host
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            name, int(port or 443), type=socket.SOCK_STREAM
        )
    except OSError as error:
        raise UnreachableError(f"the registry {reference.host} cannot be found: {error}") from error
    for _, _, _, _, address in found:
        if not ipaddress.ip_address(address[0]).is_global:
            raise ImageError(
                f"the registry {reference.host} is at a private address ({address[0]}); whoever"
                " keeps this installation can allow it with ALCOVE_NODE_TRUSTED_REGISTRIES"
            )
    return False
