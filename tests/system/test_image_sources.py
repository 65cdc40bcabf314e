"""Images from a registry with passwords, from one that is not there, and from archives."""

import asyncio
import contextlib
import hashlib
import http.server
import json
import platform
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from alcove.node import disks, trees
from alcove.node.building.oci import Fetched, ImageFetcher, Room
from alcove.node.building.registries import Credentials, ImageError, UnreachableError
from alcove.storage import Storage

pytestmark = [pytest.mark.system, pytest.mark.root, pytest.mark.timeout(240)]

# bcrypt, the only form that the registry knows, of "right", of a service account and of what a
# test's Amazon says.
SERVICE_ACCOUNT = '{"type": "service_account"}'
PASSWORDS = """\
user:$2b$04$PeEEx143Ipe7xN6xft7EHeYFCOF3IJM85t0ov9WYGEqceJQ8nPh6u
_json_key:$2b$04$MlxblJGDVlhFwrB5YnbIhefmAQe2KzhJ.4vvyDMXgDd95dhmt8C92
AWS:$2b$04$qT5czNLXMEHw6cfYQrx9nu8GmpHFQtScCospeeQtiAp5BZrhyFtMC
"""
RIGHT = Credentials("registry", {"username": "user", "password": "right"})
MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
MOST_MIB = 64


@dataclass
class Registry:
    host: str
    data: Path
    layout: Path


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sources-", dir="/var/tmp") as made:
        yield Path(made)


@pytest.fixture(scope="module")
def registry(directory: Path) -> Iterator[Registry]:
    """It holds image:oci and image:docker, which are two layers, and image:zstd."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    (directory / "passwords").write_text(PASSWORDS)
    (directory / "registry.yml").write_text(
        "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {directory}/data}}}}\n"
        f"auth: {{htpasswd: {{realm: here, path: {directory}/passwords}}}}\n"
        f"http: {{addr: '{host}'}}\n"
    )
    server = subprocess.Popen(["docker-registry", "serve", str(directory / "registry.yml")])
    try:
        wait_for(host)
        made = Registry(host, directory / "data", make_image(directory))
        push(made, "oci", ["--format", "oci"])
        push(made, "docker", ["--format", "v2s2"])
        push(made, "zstd", ["--format", "oci", "--dest-compress-format", "zstd"])
        yield made
    finally:
        server.terminate()
        server.wait()


def wait_for(host: str) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(f"http://{host}/v2/", timeout=2).close()
        except urllib.error.HTTPError:
            return  # it wants a password
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"{host} does not answer")


def make_image(directory: Path) -> Path:
    layout, lower, upper = (directory / name for name in ("layout", "lower", "upper"))
    (lower / "etc").mkdir(parents=True)
    (lower / "etc/old").write_text("old")
    (lower / "full").mkdir()
    (lower / "full/of").write_text("x")
    upper.mkdir()
    (upper / "new").write_text("new")
    image = f"{layout}:image"
    for arguments in (
        ["init", "--layout", layout],
        ["new", "--image", image],
        ["insert", "--image", image, lower, "/"],
        ["insert", "--image", image, "--whiteout", "/etc/old"],
        ["insert", "--image", image, "--opaque", upper, "/full"],
        ["config", "--image", image, "--config.env", "A=b", "--architecture", MACHINE],
    ):
        subprocess.run(["umoci", *map(str, arguments)], check=True)
    return layout


def skopeo(*arguments: str) -> None:
    subprocess.run(["skopeo", "--insecure-policy", "copy", "--quiet", *arguments], check=True)


def push(registry: Registry, tag: str, options: list[str]) -> None:
    access = ["--dest-tls-verify=false", "--dest-creds=user:right", *options]
    skopeo(*access, f"oci:{registry.layout}:image", f"docker://{registry.host}/image:{tag}")


@dataclass
class Node:
    """The fetching part of a node, with an object store."""

    fetcher: ImageFetcher
    storage: Storage
    directory: Path

    async def fetch(self, image: str, credentials: Credentials | None, root: str) -> Fetched:
        digest = await self.fetcher.digest(image, credentials)
        room = Room(self.directory / root, MOST_MIB)
        return await self.fetcher.fetch(image, digest, credentials, room, lambda *_: None)

    async def send(self, archive: Path) -> str:
        """Put an archive into the object store; its digest."""
        content = await asyncio.to_thread(archive.read_bytes)

        async def parts() -> AsyncIterator[bytes]:
            yield content

        await self.storage.put("key", parts())
        return hashlib.sha256(content).hexdigest()

    async def fetch_archive(self, digest: str, root: str) -> Fetched:
        room = Room(self.directory / root, MOST_MIB)
        return await self.fetcher.fetch_archive("key", digest, room, lambda *_: None)


@pytest.fixture
def node(registry: Registry) -> Iterator[Node]:
    with tempfile.TemporaryDirectory(prefix="node-", dir="/var/tmp") as made:
        storage = Storage("", Path(made))
        yield Node(ImageFetcher(Path(made), [registry.host], storage), storage, Path(made))
        # Nothing is left of any fetch, good or bad.
        assert list((Path(made) / "images/fetching").iterdir()) == []
        assert not [p for p in (Path(made) / "images/oci").iterdir() if p.name.startswith(".")]
        assert made not in Path("/proc/mounts").read_text()


def check(root: Path) -> None:
    assert (root / "full/new").read_text() == "new"
    assert [path.name for path in (root / "full").iterdir()] == ["new"]
    assert list((root / "etc").iterdir()) == []


def test_every_form_of_an_image_is_the_same_root(registry: Registry, node: Node) -> None:
    async def scenario() -> None:
        layers = set[str]()
        for tag in ("oci", "docker", "zstd"):
            fetched = await node.fetch(f"{registry.host}/image:{tag}", RIGHT, tag)
            assert fetched.env["A"] == "b"
            layers |= set(fetched.layers)
            check(node.directory / tag)
        # Stored once, whatever they were compressed with; and no longer than they are of use.
        kept = node.directory / "images/oci"
        assert len(list(kept.iterdir())) == len(layers) == 3
        await node.fetcher.collect({fetched.layers[0]})
        assert len(list(kept.iterdir())) == 1
        check(node.directory / "oci")

    asyncio.run(scenario())


def test_of_several_architectures_this_machine_has_its_own(
    registry: Registry, node: Node, directory: Path
) -> None:
    other = "arm64" if MACHINE == "amd64" else "amd64"
    descriptors = []
    for architecture in (other, MACHINE):
        image = f"{registry.layout}:for-{architecture}"
        make = ["--image", f"{registry.layout}:image", "--tag", f"for-{architecture}"]
        settings = ["--architecture", architecture, "--config.env", f"FOR={architecture}"]
        subprocess.run(["umoci", "config", *make, *settings], check=True)
        place = f"docker://{registry.host}/image:{architecture}"
        access = ["--dest-tls-verify=false", "--dest-creds=user:right", "--format=oci"]
        skopeo(*access, f"oci:{image}", place)
        raw = subprocess.run(
            ["skopeo", "inspect", "--raw", "--tls-verify=false", "--creds=user:right", place],
            check=True,
            capture_output=True,
        ).stdout
        descriptors.append(
            {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": "sha256:" + hashlib.sha256(raw).hexdigest(),
                "size": len(raw),
                "platform": {"architecture": architecture, "os": "linux"},
            }
        )
    put_index(registry, "both", descriptors)
    put_index(registry, "foreign", descriptors[:1])

    async def scenario() -> None:
        fetched = await node.fetch(f"{registry.host}/image:both", RIGHT, "root")
        assert fetched.env["FOR"] == MACHINE
        with pytest.raises(ImageError, match="no variant for this machine's architecture"):
            await node.fetch(f"{registry.host}/image:foreign", RIGHT, "other")

    asyncio.run(scenario())


def put_index(registry: Registry, tag: str, manifests: list[dict[str, Any]]) -> None:
    kind = "application/vnd.oci.image.index.v1+json"
    index = {"schemaVersion": 2, "mediaType": kind, "manifests": manifests}
    request = urllib.request.Request(
        f"http://{registry.host}/v2/image/manifests/{tag}",
        json.dumps(index).encode(),
        {
            "Content-Type": kind,
            "Authorization": "Basic " + b64encode(b"user:right").decode(),
        },
        method="PUT",
    )
    urllib.request.urlopen(request, timeout=30).close()


class Amazon(http.server.BaseHTTPRequestHandler):
    """Gives a password for the registry to whoever signs with the key "id"."""

    def do_POST(self) -> None:
        signed = self.headers.get("Authorization", "")
        target = self.headers.get("X-Amz-Target", "")
        right = "Credential=id/" in signed and "/ecr/aws4_request" in signed
        body: dict[str, Any] = {"__type": "UnrecognizedClientException"}
        if right and target.endswith(".GetAuthorizationToken"):
            token = b64encode(b"AWS:from-amazon").decode()
            body = {"authorizationData": [{"authorizationToken": token}]}
        content = json.dumps(body).encode()
        self.send_response(200 if "authorizationData" in body else 400)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def amazon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = http.server.HTTPServer(("127.0.0.1", 0), Amazon)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_ECR", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_registry_that_wants_a_password(registry: Registry, node: Node, amazon: None) -> None:
    image = f"{registry.host}/image:oci"
    aws = {"awsAccessKeyId": "id", "awsSecretAccessKey": "secret", "awsRegion": "eu-west-1"}
    good = [
        RIGHT,
        Credentials("gcp", {"serviceAccountJson": SERVICE_ACCOUNT}),
        Credentials("aws", aws),
    ]
    wrong = Credentials("registry", {"username": "user", "password": "wrong"})
    bad = [
        (None, "the registry wants credentials, or there is no such image|other credentials"),
        (wrong, "the registry wants other credentials|wants credentials"),
        (Credentials("gcp", {"serviceAccountJson": "{}"}), "other credentials|wants credentials"),
        (Credentials("aws", aws | {"awsAccessKeyId": "x"}), "refuses the access key"),
    ]

    async def scenario() -> None:
        for credentials in good:
            assert (await node.fetcher.digest(image, credentials)).startswith("sha256:")
        for refused, words in bad:
            with pytest.raises(ImageError, match=words):
                await node.fetcher.digest(image, refused)
        with pytest.raises(ImageError, match="there is no such image"):
            await node.fetcher.digest(f"{registry.host}/image:none", RIGHT)

    asyncio.run(scenario())


def test_a_registry_that_is_not_there(node: Node) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        host = f"127.0.0.1:{closed.getsockname()[1]}"
        node.fetcher = ImageFetcher(node.directory, [host], node.storage)

        async def scenario() -> None:
            with pytest.raises(UnreachableError, match="the registry does not answer"):
                await node.fetcher.digest(f"{host}/image", None)
            with pytest.raises(UnreachableError, match="cannot be found"):
                await node.fetcher.digest("registry.invalid/image", None)

        asyncio.run(scenario())


def test_a_layer_that_the_registry_changed_is_refused(registry: Registry, node: Node) -> None:
    push(registry, "changed", ["--format", "oci", "--dest-compress-level", "9"])

    async def scenario() -> None:
        digest = await node.fetcher.digest(f"{registry.host}/image:changed", RIGHT)
        with changed(registry.data, digest):
            with pytest.raises(ImageError, match="damaged: a layer is not what the image says"):
                await node.fetch(f"{registry.host}/image:changed", RIGHT, "root")
            assert not (node.directory / "root").exists()

    asyncio.run(scenario())


@contextlib.contextmanager
def changed(data: Path, digest: str) -> Iterator[None]:
    """The last layer of an image, altered on the registry's disk."""
    blobs = data / "docker/registry/v2/blobs/sha256"

    def blob(name: str) -> Path:
        name = name.removeprefix("sha256:")
        return blobs / name[:2] / name / "data"

    path = blob(json.loads(blob(digest).read_text())["layers"][-1]["digest"])
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        yield
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_an_image_as_one_file(registry: Registry, node: Node, directory: Path, kind: str) -> None:
    archive = directory / f"{kind}.tar"
    skopeo(f"oci:{registry.layout}:image", f"{kind}:{archive}:some/name:tag")

    async def scenario() -> None:
        digest = await node.send(archive)
        fetched = await node.fetch_archive(digest, "root")
        assert fetched.env["A"] == "b"
        check(node.directory / "root")
        with pytest.raises(ImageError, match="is damaged: what was sent has the SHA-256"):
            await node.fetch_archive("0" * 64, "other")

    asyncio.run(scenario())


def make_bomb(directory: Path) -> Path:
    """An archive of an image whose one layer is of 100 MiB of nothing."""
    layout, content = directory / "bomb", directory / "zeros"
    content.mkdir()
    (content / "zeros").write_bytes(bytes(100 << 20))
    image = f"{layout}:image"
    for arguments in (
        ["init", "--layout", str(layout)],
        ["new", "--image", image],
        ["insert", "--image", image, str(content), "/"],
    ):
        subprocess.run(["umoci", *arguments], check=True)
    shutil.rmtree(content)
    archive = directory / "bomb.tar"
    skopeo(f"oci:{layout}:image", f"oci-archive:{archive}")
    return archive


def without(name: str) -> Callable[[Path, Path], Path]:
    def make(archive: Path, into: Path) -> Path:
        shutil.copy(archive, into)
        subprocess.run(["tar", "--delete", f"--file={into}", name], check=True)
        return into

    return make


def test_archives_that_are_refused(registry: Registry, node: Node, directory: Path) -> None:
    archive = directory / "whole.tar"
    skopeo(f"oci:{registry.layout}:image", f"oci-archive:{archive}:x")
    listed = subprocess.run(["tar", "-tf", archive], capture_output=True, text=True, check=True)
    blob = next(line for line in listed.stdout.splitlines() if line.startswith("blobs/sha256/"))

    async def scenario() -> None:
        bomb = make_bomb(directory)
        assert bomb.stat().st_size < 1 << 20
        for refused, words in (
            (bomb, "larger than the template's disk"),
            (without("index.json")(archive, directory / "a.tar"), "cannot be used"),
            (without(blob)(archive, directory / "b.tar"), "cannot be used"),
        ):
            digest = await node.send(refused)
            with pytest.raises(ImageError, match=words) as caught:
                await node.fetch_archive(digest, "root")
            assert str(node.directory) not in str(caught.value)
            await trees.remove(node.directory / "root")

    asyncio.run(scenario())


def test_what_a_killed_node_left_goes_at_the_next_start(node: Node) -> None:
    async def scenario() -> None:
        work = node.directory / "images/fetching/image-killed"
        half = node.directory / "images/oci/.new-killed/diff"
        await asyncio.to_thread(work.mkdir)
        await asyncio.to_thread(half.mkdir, parents=True)
        disk = await disks.create(work, MOST_MIB)
        (disk / "layout").write_text("half of an image")
        (half / "file").write_text("half of a layer")
        await node.fetcher.remove_remains()  # the fixture looks at what is left

    asyncio.run(scenario())
