"""The real agent in images that have nothing it could lean on: another C library, or no file."""

import asyncio
import base64
import http.client
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import rig

from alcove.node.drivers.driver import AGENT_MOUNT, VOLUMES_MOUNT, Image, Place
from alcove.node.drivers.gvisor import GvisorDriver
from alcove.node.guest_client import GuestClient
from alcove.wire.connect import EnvelopeDecoder, encode_envelope
from alcove.wire.hosts import GUEST_PORT

MUSL = Path("/lib/ld-musl-x86_64.so.1")
PYTHON = (
    f"{AGENT_MOUNT}/lib/ld.so",
    "--library-path",
    f"{AGENT_MOUNT}/lib",
    f"{AGENT_MOUNT}/bin/python3",
    "-sSc",
)
PASSWD = "root:x:0:0:root:/root:/bin/sh\nada:x:1500:1500:Ada:/home/ada:/bin/sh\n"
TOKEN = "0123456789abcdef"

pytestmark = [
    pytest.mark.root,
    pytest.mark.runsc,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("runsc") is None, reason="needs root and runsc"
    ),
]


@pytest.fixture(scope="module")
def musl_root(root: Path) -> Path:
    if not MUSL.exists():
        pytest.skip("needs the packages that bin/packages test installs")
    made = root / "musl"
    for name in ("bin", "etc", "lib", "root", "home/ada", "tmp"):
        (made / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", made / "bin")
    (made / "bin/sh").symlink_to("busybox")
    shutil.copy(MUSL, made / "lib")
    (made / "etc/passwd").write_text(PASSWD)
    os.chown(made / "home/ada", 1500, 1500)
    return made


@pytest.fixture(scope="module")
def empty_root(root: Path) -> Path:
    made = root / "empty"
    made.mkdir()
    return made


class Guest:
    """Calls to the agent in one place."""

    def __init__(self, driver: GvisorDriver, place: Place) -> None:
        self._driver = driver
        self._place = place

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("guest")
        connection.sock = await self._driver.dial(self._place, GUEST_PORT, 5)
        connection.sock.settimeout(30)
        more = {"x-access-token": TOKEN} | (headers or {})
        try:
            return await asyncio.to_thread(_exchange, connection, method, path, body, more)
        finally:
            connection.close()

    async def run(self, user: str, *argv: str) -> tuple[str, int]:
        """What the command printed, on both outputs, and its exit code."""
        message = {"process": {"cmd": argv[0], "args": list(argv[1:])}, "stdin": False}
        headers = {
            "content-type": "application/connect+json",
            "authorization": "Basic " + base64.b64encode(f"{user}:".encode()).decode(),
        }
        body = encode_envelope(json.dumps(message).encode())
        _, answer = await self.request("POST", "/process.Process/Start", body, headers)
        output, code = b"", -1
        for envelope in EnvelopeDecoder(1 << 20).feed(answer):
            said: dict[str, Any] = json.loads(envelope.payload)
            assert "error" not in said, said
            event = said.get("event", {})
            output += b"".join(map(base64.b64decode, event.get("data", {}).values()))
            if "end" in event:
                code = event["end"].get("exitCode", 0)
        return output.decode(), code

    async def write(self, user: str, path: str, content: bytes) -> int:
        target = f"/files?{urlencode({'path': path, 'username': user})}"
        kind = {"content-type": "application/octet-stream"}
        return (await self.request("POST", target, content, kind))[0]

    async def read(self, user: str, path: str) -> bytes:
        return (await self.request("GET", f"/files?{urlencode({'path': path, 'username': user})}"))[
            1
        ]


def _exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes,
    headers: dict[str, str],
) -> tuple[int, bytes]:
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    return response.status, response.read()


async def boot(make_place: Callable[[], Place], image: Image) -> tuple[GvisorDriver, Place, Guest]:
    driver, place = GvisorDriver(), make_place()
    await driver.boot(place, image)
    client = GuestClient(driver, place, "")
    await client.healthy(30)
    identity = {
        "accessToken": TOKEN,
        "sandboxId": "iany",
        "hostname": "iany",
        "defaultUser": "root",
    }
    await client.init(identity, 30)
    return driver, place, Guest(driver, place)


async def restored(
    make_place: Callable[[], Place], driver: GvisorDriver, image: Image, snapshot: Path
) -> Guest:
    place = make_place()
    await driver.restore(place, replace(image, snapshot=snapshot))
    await GuestClient(driver, place, TOKEN).init({"sandboxId": "ibis", "hostname": "ibis"}, 30)
    return Guest(driver, place)


def test_an_image_with_musl(
    make_place: Callable[[], Place], musl_root: Path, agent: Path, tmp_path: Path
) -> None:
    shell = ("/bin/busybox", "sh", "-c")

    async def looks_right(guest: Guest, name: str) -> None:
        assert await guest.run("root", *shell, "busybox id -u; busybox hostname") == (
            f"0\n{name}\n",
            0,
        )
        assert await guest.run("ada", *shell, 'busybox id -u; echo "$HOME"; pwd; exit 3') == (
            "1500\n/home/ada\n/home/ada\n",
            3,
        )
        assert "musl libc" in (await guest.run("ada", f"/lib/{MUSL.name}"))[0]
        assert await guest.write("ada", f"by-{name}.txt", name.encode()) == 200
        assert await guest.read("ada", f"by-{name}.txt") == name.encode()
        owner = f"busybox stat -c %u:%g /home/ada/by-{name}.txt"
        assert await guest.run("root", *shell, owner) == ("1500:1500\n", 0)

    async def scenario() -> None:
        image = rig.make_image(musl_root, agent)
        driver, place, guest = await boot(make_place, image)
        await looks_right(guest, "iany")
        await driver.snapshot(place, tmp_path / "snapshot")
        clone = await restored(make_place, driver, image, tmp_path / "snapshot")
        await looks_right(clone, "ibis")
        assert await clone.read("ada", "by-iany.txt") == b"iany"

    asyncio.run(scenario())


def test_an_image_without_a_single_file(
    make_place: Callable[[], Place], empty_root: Path, agent: Path, tmp_path: Path
) -> None:
    async def looks_right(guest: Guest, name: str) -> None:
        code = "import socket; print(socket.gethostname())"
        assert await guest.run("root", *PYTHON, code) == (f"{name}\n", 0)
        assert await guest.write("root", f"/data/{name}", name.encode()) == 200
        assert await guest.read("root", f"/data/{name}") == name.encode()

    async def scenario() -> None:
        image = rig.make_image(empty_root, agent)
        driver, place, guest = await boot(make_place, image)
        await looks_right(guest, "iany")
        await driver.snapshot(place, tmp_path / "snapshot")
        clone = await restored(make_place, driver, image, tmp_path / "snapshot")
        await looks_right(clone, "ibis")
        assert await clone.read("root", "/data/iany") == b"iany"

    asyncio.run(scenario())
    # runsc needs mount points; nothing that a guest writes gets here.
    mount_points = {AGENT_MOUNT.strip("/"), VOLUMES_MOUNT.strip("/")}
    assert {path.name for path in empty_root.rglob("*")} == mount_points


def test_a_connection_open_at_a_snapshot_does_no_harm(
    make_place: Callable[[], Place], empty_root: Path, agent: Path, tmp_path: Path
) -> None:
    """Such a connection once left the clone's agent spinning on an event of a closed socket."""

    async def scenario() -> None:
        image = rig.make_image(empty_root, agent)
        driver, place, guest = await boot(make_place, image)
        connection = await driver.dial(place, GUEST_PORT, 5)
        with connection:
            body = b'{"path":"/","depth":1}'
            head = (
                "POST /filesystem.Filesystem/ListDir HTTP/1.1\r\nhost: x\r\n"
                f"content-type: application/json\r\nx-access-token: {TOKEN}\r\n"
                f"content-length: {len(body)}\r\n\r\n"
            )
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(connection, head.encode() + body)
            assert (await loop.sock_recv(connection, 4096)).startswith(b"HTTP/1.1 200")
            for number in range(3):
                snapshot = tmp_path / f"snapshot{number}"
                await driver.snapshot(place, snapshot)
                clone = await restored(make_place, driver, image, snapshot)
                assert await clone.write("root", "/here", b"alive") == 200
        assert await guest.write("root", "/here", b"alive as well") == 200

    asyncio.run(scenario())
