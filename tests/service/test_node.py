"""The node with the fake driver: API, lives, places, ingress; restart on the same directory."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from alcove.node.drivers.driver import (
    DriverError,
    Image,
    Place,
    PortClosedError,
    SnapshotDamagedError,
)
from alcove.node.drivers.fake import ECHO_PORT, FakeDriver
from alcove.node.main import Node, make_machine
from alcove.node.settings import Settings
from alcove.wire.hosts import GUEST_PORT
from alcove.wire.ids import BuildId, SandboxId, TemplateId
from alcove.wire.node import ImageSpec, SandboxReport, SandboxSpec
from alcove.wire.states import NodeSandboxState as State
from alcove.wire.states import StopReason

KEY = "0123456789abcdef"
NO_CAPACITY = (503, "sandbox_capacity_unavailable")
BUILD = "11111111-1111-4111-8111-111111111111"
IMAGE = ImageSpec(BuildId(BUILD), TemplateId("base1"), "base", 2, 512, 1024)


def spec(sandbox_id: str = "i1", generation: int = 1, **changes) -> SandboxSpec:
    first = SandboxSpec(
        sandbox_id=SandboxId(sandbox_id),
        generation=generation,
        template_id=TemplateId("base1"),
        build_id=BuildId(BUILD),
        access_token="guest-token",
        vcpu_count=2,
        memory_mib=512,
        disk_mib=1024,
        env_vars={"A": "1"},
    )
    return replace(first, **changes)


class AwkwardDriver(FakeDriver):
    """A fake driver that fails or waits when a test tells it to."""

    def __init__(self) -> None:
        super().__init__()
        self.restore_errors: list[Exception] = []
        self.stop_errors: list[Exception] = []
        self.dial_errors: list[Exception] = []
        self.hold: asyncio.Event | None = None
        self.restoring = asyncio.Event()
        self.restored_in: list[int] = []

    async def restore(self, place: Place, image: Image) -> None:
        self.restoring.set()
        self.restored_in.append(place.slot)
        if self.hold is not None:
            await self.hold.wait()
        if self.restore_errors:
            raise self.restore_errors.pop(0)
        await super().restore(place, image)

    async def stop(self, place: Place) -> None:
        if self.stop_errors:
            raise self.stop_errors.pop(0)
        await super().stop(place)

    async def dial(self, place: Place, port: int, timeout_s: float) -> socket.socket:
        if port == ECHO_PORT and self.dial_errors:
            raise self.dial_errors.pop(0)
        return await super().dial(place, port, timeout_s)


@dataclass
class Scene:
    node: Node
    driver: AwkwardDriver
    api: httpx.AsyncClient
    ingress_port: int
    data_dir: Path

    async def put(self, wanted: SandboxSpec) -> httpx.Response:
        return await self.api.put(f"/v1/sandboxes/{wanted.sandbox_id}", json=wanted.to_json())

    async def start(self, wanted: SandboxSpec) -> SandboxReport:
        response = await self.put(wanted)
        assert response.status_code == 200, response.text
        return SandboxReport.from_json(response.json())

    async def report(self, sandbox_id: str = "i1") -> SandboxReport:
        response = await self.api.get(f"/v1/sandboxes/{sandbox_id}")
        assert response.status_code == 200, response.text
        return SandboxReport.from_json(response.json())

    async def connect(
        self, target: str, token: str = KEY, headers: str = ""
    ) -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.ingress_port)
        writer.write(
            f"CONNECT {target} HTTP/1.1\r\nAuthorization: Bearer {token}\r\n{headers}\r\n".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        return int(head.split()[1]), reader, writer

    def slots(self) -> set[str]:
        directory = self.data_dir / "slots"
        return {entry.name for entry in directory.iterdir()} if directory.is_dir() else set()

    async def until(self, kind: str) -> None:
        async for event in self.node.events.follow(0):
            if event is not None and event.kind == kind:
                return


@contextlib.asynccontextmanager
async def scene(data_dir: Path, *, build: bool = True, **settings) -> AsyncIterator[Scene]:
    none = {"places_ready": 0, "warm_ready_total": 0, "memory_reserve_mib": 0}
    chosen = {"ingress_port": 0} | none | settings
    all_settings = Settings(data_dir=data_dir, driver="fake", instance="nsv", **chosen)
    machine = make_machine(all_settings)
    driver = machine.driver = AwkwardDriver()
    node = Node(all_settings, machine, KEY)
    app = await node.open()
    try:
        async with (
            asyncio.timeout(10),
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app),
                base_url="http://node",
                headers={"Authorization": f"Bearer {KEY}"},
            ) as api,
        ):
            made = Scene(node, driver, api, node.ingress_port, data_dir)
            if build:
                await api.put(f"/v1/images/{BUILD}", json=IMAGE.to_json())
                await made.until("image.ready")
                await node.places.cleared()
            yield made
    finally:
        await node.close()


async def turns(true: Callable[[], bool]) -> None:
    """Give the others turns until it is true; the scene's time limit ends it otherwise."""
    while not true():  # noqa: ASYNC110
        await asyncio.sleep(0)


def play(act: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(act())  # type: ignore[arg-type]


def test_a_sandbox_starts_is_reported_and_stops_without_remains(tmp_path):
    async def act() -> None:
        async with scene(tmp_path) as s:
            report = await s.start(spec())
            assert report.state is State.RUNNING
            assert report.isolation == "none"
            assert {"queue", "place", "restore", "init", "total"} <= report.timings_ms.keys()
            listed = (await s.api.get("/v1/sandboxes")).json()["sandboxes"]
            assert [entry["sandbox_id"] for entry in listed] == ["i1"]
            response = await s.api.delete("/v1/sandboxes/i1?reason=timeout")
            assert response.status_code == 204
            stopped = await s.report()
            assert (stopped.state, stopped.stop_reason) == (State.STOPPED, StopReason.TIMEOUT)
            await s.node.places.cleared()
            assert s.slots() == set()

    play(act)


def test_the_guest_gets_its_token_and_environment(tmp_path):
    async def act() -> None:
        async with scene(tmp_path) as s:
            await s.start(spec())
            for token, status in (("wrong", b"401"), ("guest-token", b"200")):
                _, reader, writer = await s.connect(f"{GUEST_PORT}-i1")
                writer.write(
                    b"GET /envs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                    b"X-Access-Token: " + token.encode() + b"\r\n\r\n"
                )
                answer = await reader.read()
                assert answer.split()[1] == status
            assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {"A": "1"}

    play(act)


def test_a_repeated_start_says_the_same_and_starts_nothing(tmp_path):
    async def act() -> None:
        async with scene(tmp_path) as s:
            first = await s.start(spec())
            assert await s.start(spec()) == first
            assert len(s.driver.restored_in) == 1

    play(act)


def test_starts_at_the_same_time_are_one_start(tmp_path):
    async def act() -> None:
        async with scene(tmp_path) as s, asyncio.TaskGroup() as tasks:
            s.driver.hold = asyncio.Event()
            both = [tasks.create_task(s.start(spec())) for _ in range(2)]
            await s.driver.restoring.wait()
            s.driver.hold.set()
            assert await both[0] == await both[1]
            assert len(s.driver.restored_in) == 1

    play(act)


def test_an_older_life_is_refused_and_a_newer_one_replaces(tmp_path):
    async def act() -> None:
        async with scene(tmp_path) as s:
            await s.start(spec(generation=2))
            assert (await s.put(spec(generation=1))).status_code == 409
            assert (await s.start(spec(generation=3))).generation == 3
            assert len(s.driver.restored_in) == 2

    play(act)


def test_a_life_that_has_ended_does_not_begin_again(tmp_path):
    async def act() -> None:
        async with scene(tmp_path) as s:
            await s.start(spec())
            await s.api.delete("/v1/sandboxes/i1")
            response = await s.put(spec())
            assert response.status_code == 409
            assert "killed" in response.json()["message"]
            assert (await s.start(spec(generation=2))).state is State.RUNNING

    play(act)


def test_a_failed_start_is_told_and_leaves_nothing(tmp_path):
    async def act() -> None:
        async with scene(tmp_path) as s:
            s.driver.restore_errors = [SnapshotDamagedError("pages.img is short")]
            for _ in range(2):  # asked again, it says the same
                response = await s.put(spec())
                assert response.status_code == 500
                assert response.json()["error_code"] == "sandbox_create_failed"
                assert "restore: pages.img is short" in response.json()["message"]
            await s.node.places.cleared()
            assert s.slots() == set()
            assert (await s.report()).stop_reason is StopReason.START_FAILED

    play(act)


def test_a_prepared_place_that_lets_us_down_is_replaced_by_a_new_one(tmp_path):
    async def act() -> None:
        async with scene(tmp_path, places_ready=1) as s:
            await turns(lambda: s.node.places.prepared > 0)
            s.driver.restore_errors = [DriverError("the container has gone")]
            report = await s.start(spec())
            assert report.state is State.RUNNING
            first, second = s.driver.restored_in
            assert first != second

    play(act)


def test_prepared_places_are_used_and_made_up_for(tmp_path):
    async def act() -> None:
        async with scene(tmp_path, places_ready=2) as s:
            await turns(lambda: s.node.places.prepared == 2)
            for number in range(5):
                await s.start(spec(f"i{number}"))
            await turns(lambda: s.node.places.prepared == 2)
            assert s.node.places.in_use == 5
            node = (await s.api.get("/v1/node")).json()
            assert (node["sandboxes"], node["slots_ready"]) == (5, 2)

    play(act)


def test_a_stop_interrupts_a_start(tmp_path):
    async def act() -> None:
        async with scene(tmp_path) as s, asyncio.TaskGroup() as tasks:
            s.driver.hold = asyncio.Event()
            starting = tasks.create_task(s.put(spec()))
            await s.driver.restoring.wait()
            assert (await s.api.delete("/v1/sandboxes/i1")).status_code == 204
            assert (await starting).status_code == 409
            await s.node.places.cleared()
            assert s.slots() == set()

    play(act)


def test_a_start_takes_no_longer_than_its_limit(tmp_path):
    async def act() -> None:
        async with scene(tmp_path, start_timeout_s=0.05) as s:
            s.driver.hold = asyncio.Event()
            response = await s.put(spec())
            assert response.status_code == 500
            assert "took more than 0.05 s" in response.json()["message"]
            await s.node.places.cleared()
            assert s.slots() == set()

    play(act)


def test_stopping_what_is_not_there_is_no_error(tmp_path):
    async def act() -> None:
        async with scene(tmp_path, build=False) as s:
            assert (await s.api.delete("/v1/sandboxes/i9")).status_code == 204

    play(act)


def test_a_driver_that_cannot_stop_at_once_is_asked_again(tmp_path):
    async def act() -> None:
        async with scene(tmp_path) as s:
            await s.start(spec())
            s.driver.stop_errors = [DriverError("busy")]
            assert (await s.api.delete("/v1/sandboxes/i1")).status_code == 204
            assert (await s.report()).state is State.STOPPED

    play(act)


def test_a_place_that_cannot_be_cleared_is_cleared_by_a_later_sweep(tmp_path):
    async def act() -> None:
        async with scene(tmp_path) as s:
            s.driver.stop_errors = []
            await s.start(spec())
            place = s.node.supervisor.running(SandboxId("i1")).place
            await s.api.delete("/v1/sandboxes/i1")
            s.driver.stop_errors = [DriverError("busy")]
            await s.node.places.cleared()
            assert s.slots() == {str(place.slot)}
            await s.node.places.sweep()
            await s.node.places.cleared()
            assert s.slots() == set()

    play(act)


def test_a_guest_that_ends_by_itself_is_noticed(tmp_path):
    async def act() -> None:
        async with scene(tmp_path) as s:
            await s.start(spec())
            s.driver.kill(s.node.supervisor.running(SandboxId("i1")).place)
            await s.until("sandbox.stopped")
            report = await s.report()
            assert (report.stop_reason, report.detail) == (StopReason.EXITED, "signal 9")
            entries = (await s.api.get("/v1/sandboxes/i1/logs")).json()["entries"]
            assert [e["message"] for e in entries] == [
                "sandbox started",
                "sandbox stopped: exited: signal 9",
            ]

    play(act)


def test_a_start_without_image_memory_or_place_is_refused(tmp_path):
    async def act() -> None:
        async with scene(tmp_path, slots_max=1) as s:
            missing = await s.put(spec(build_id=BuildId("other")))
            assert (missing.status_code, missing.json()["error_code"]) == (
                409,
                "template_not_ready",
            )
            await s.start(spec("i1"))
            full = await s.put(spec("i2"))
            assert (full.status_code, full.json()["error_code"]) == NO_CAPACITY
            assert "places of this node are in use" in full.json()["message"]
            # Nothing was begun: once there is room again, the same start succeeds.
            await s.api.delete("/v1/sandboxes/i1")
            await s.node.places.cleared()
            assert (await s.start(spec("i2"))).state is State.RUNNING
        async with scene(tmp_path / "poor", memory_reserve_mib=10**9) as s:
            poor = await s.put(spec())
            assert (poor.status_code, poor.json()["error_code"]) == NO_CAPACITY
            assert (await s.api.get("/v1/sandboxes")).json() == {"sandboxes": []}

    play(act)


def test_of_two_starts_for_the_last_place_one_is_refused(tmp_path):
    async def act() -> None:
        async with scene(tmp_path, slots_max=1) as s, asyncio.TaskGroup() as tasks:
            both = [tasks.create_task(s.put(spec(name))) for name in ("i1", "i2")]
            answers = sorted([await each for each in both], key=lambda a: a.status_code)
            assert answers[0].status_code == 200
            assert (answers[1].status_code, answers[1].json()["error_code"]) == NO_CAPACITY

    play(act)


def test_a_prepared_place_is_room_on_a_full_node(tmp_path):
    async def act() -> None:
        async with scene(tmp_path, slots_max=1, places_ready=1) as s:
            await turns(lambda: s.node.places.prepared == 1)
            assert (await s.start(spec())).state is State.RUNNING

    play(act)


def test_a_new_node_adopts_what_runs_and_clears_the_rest(tmp_path):
    async def act() -> None:
        async with scene(tmp_path, places_ready=1) as s:
            await s.start(spec("i1"))
            await s.start(spec("i2"))
            await s.start(spec("i3"))
            await s.api.delete("/v1/sandboxes/i3")
            gone = s.node.supervisor.running(SandboxId("i2")).place
        await s.driver.stop(gone)  # ends while nobody looks
        (tmp_path / "slots" / "77").mkdir()  # an intent without more
        async with scene(tmp_path, build=False) as s:
            await s.until("sandbox.stopped")
            await s.node.places.cleared()
            assert (await s.report("i1")).state is State.RUNNING
            assert (await s.report("i2")).stop_reason is StopReason.NODE_LOST
            assert (await s.report("i3")).stop_reason is StopReason.KILLED
            assert len(s.slots()) == 1
            status, reader, writer = await s.connect(f"{ECHO_PORT}-i1")
            assert status == 200
            writer.write(b"still here")
            assert await reader.readexactly(10) == b"still here"
            await s.api.delete("/v1/sandboxes/i1")
            await s.node.places.cleared()
            assert s.slots() == set()

    play(act)


def test_secrets_of_a_stopped_sandbox_are_not_kept(tmp_path):
    async def act() -> None:
        async with scene(tmp_path) as s:
            await s.start(spec())
            path = tmp_path / "sandboxes" / "i1" / "record.json"
            assert "guest-token" in path.read_text()
            await s.api.delete("/v1/sandboxes/i1")
            assert "guest-token" not in path.read_text()

    play(act)


def test_a_tunnel_carries_bytes_and_half_closes(tmp_path):
    async def act() -> None:
        async with scene(tmp_path) as s:
            await s.start(spec())
            status, reader, writer = await s.connect(f"{ECHO_PORT}-i1")
            assert status == 200
            data = bytes(range(256)) * 8192

            async def send() -> None:
                writer.write(data)
                await writer.drain()
                writer.write_eof()

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(send())
                assert await reader.read(-1) == data

    play(act)


def test_a_port_that_will_be_open_soon_is_waited_for(tmp_path):
    """A client may use a port as soon as it has started the program that will listen there."""

    async def act() -> None:
        async with scene(tmp_path) as s:
            await s.start(spec())
            s.driver.dial_errors = [PortClosedError("not yet"), PortClosedError("still not")]
            status, _, writer = await s.connect(f"{ECHO_PORT}-i1")
            assert (status, s.driver.dial_errors) == (200, [])
            writer.close()

    play(act)


def test_bytes_sent_with_the_request_are_not_lost(tmp_path):
    async def act() -> None:
        async with scene(tmp_path) as s:
            await s.start(spec())
            reader, writer = await asyncio.open_connection("127.0.0.1", s.ingress_port)
            writer.write(
                f"CONNECT {ECHO_PORT}-i1 HTTP/1.1\r\n"
                f"Authorization: Bearer {KEY}\r\n\r\nearly".encode()
            )
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(5) == b"early"

    play(act)


def test_a_reader_that_does_not_read_slows_the_writer(tmp_path):
    async def act() -> None:
        async with scene(tmp_path) as s:
            await s.start(spec())
            _, reader, writer = await s.connect(f"{ECHO_PORT}-i1")
            reader._transport.pause_reading()
            sent = 0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    while True:
                        writer.write(b"x" * 65536)
                        await writer.drain()
                        sent += 65536
            assert sent < 64 * 2**20

    play(act)


@pytest.mark.parametrize(
    ("target", "token", "headers", "status"),
    [
        (f"{ECHO_PORT}-i1", "wrong", "", 401),
        (f"{ECHO_PORT}-i1", "ü", "", 401),
        (f"{ECHO_PORT}-i2", KEY, "", 404),
        ("0-i1", KEY, "", 400),
        ("70000-i1", KEY, "", 400),
        ("-i1", KEY, "", 400),
        ("7", KEY, "", 400),
        ("7-I/..", KEY, "", 400),
        (f"{ECHO_PORT}-i1", KEY, "X-Alcove-Generation: 1\r\n", 200),
        (f"{ECHO_PORT}-i1", KEY, "X-Alcove-Generation: 2\r\n", 404),
        (f"{ECHO_PORT}-i1", KEY, "X-Alcove-Generation: x\r\n", 400),
        ("81-i1", KEY, "", 502),
        (f"{ECHO_PORT}-i1", KEY, "X-Big: " + "x" * 9000 + "\r\n", 431),
    ],
)
def test_what_the_ingress_answers(tmp_path, target, token, headers, status):
    async def act() -> None:
        async with scene(tmp_path) as s:
            await s.start(spec())
            assert (await s.connect(target, token, headers))[0] == status

    play(act)


def test_only_connect_is_served(tmp_path):
    async def act() -> None:
        async with scene(tmp_path, build=False) as s:
            reader, writer = await asyncio.open_connection("127.0.0.1", s.ingress_port)
            writer.write(f"GET / HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode())
            assert (await reader.read()).split()[1] == b"405"

    play(act)


def test_tunnels_of_a_sandbox_are_bounded_and_given_back(tmp_path):
    async def act() -> None:
        async with scene(tmp_path, tunnels_per_sandbox=1) as s:
            await s.start(spec())
            status, reader, writer = await s.connect(f"{ECHO_PORT}-i1")
            assert status == 200
            assert (await s.connect(f"{ECHO_PORT}-i1"))[0] == 429
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
            life = s.node.supervisor.running(SandboxId("i1"))
            await turns(lambda: not len(life.tunnels))
            assert (await s.connect(f"{ECHO_PORT}-i1"))[0] == 200

    play(act)


def test_a_stop_cuts_the_tunnels(tmp_path):
    async def act() -> None:
        async with scene(tmp_path) as s:
            await s.start(spec())
            _, reader, writer = await s.connect(f"{ECHO_PORT}-i1")
            await s.api.delete("/v1/sandboxes/i1")
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
            assert (await s.connect(f"{ECHO_PORT}-i1"))[0] == 404

    play(act)


@pytest.mark.parametrize("path", ["/v1/node", "/v1/sandboxes", "/v1/images", "/nothing"])
@pytest.mark.parametrize("token", ["", "Bearer", "Bearer wrong", "bearer " + KEY, "Bearer ü"])
def test_nothing_is_said_without_the_cluster_token(tmp_path, path, token):
    async def act() -> None:
        async with scene(tmp_path, build=False) as s:
            headers = {"Authorization": token.encode()}
            assert (await s.api.get(path, headers=headers)).status_code == 401

    play(act)


def test_health_and_metrics_need_no_token(tmp_path):
    async def act() -> None:
        async with scene(tmp_path) as s:
            await s.start(spec())
            s.api.headers.pop("Authorization")
            assert (await s.api.get("/health")).status_code == 204
            text = (await s.api.get("/metrics")).text
            assert 'alcove_node_sandboxes_started_total{outcome="ok"}' in text
            assert "alcove_node_sandboxes_count 1.0" in text

    play(act)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"{}",
        json.dumps(spec().to_json() | {"generation": 0}).encode(),
        json.dumps(spec().to_json() | {"generation": True}).encode(),
        json.dumps(spec().to_json() | {"memory_mib": "512"}).encode(),
        json.dumps(spec().to_json() | {"env_vars": {"A": 1}}).encode(),
        json.dumps(spec().to_json() | {"env_vars": []}).encode(),
        json.dumps(spec().to_json() | {"internet": 1}).encode(),
        json.dumps(spec().to_json() | {"sandbox_id": "i2"}).encode(),
        b"\xff\xfe",
        b" " * (2 << 20),
    ],
)
def test_a_malformed_start_is_refused_and_nothing_is_made(tmp_path, body):
    async def act() -> None:
        async with scene(tmp_path) as s:
            response = await s.api.put("/v1/sandboxes/i1", content=body)
            assert response.status_code == 400
            assert response.json()["error_code"] == "invalid_request"
            assert not (tmp_path / "sandboxes").exists()

    play(act)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/sandboxes/..%2f..%2fx", 404),
        ("GET", "/v1/sandboxes/NOT-an-id-x", 400),
        ("GET", "/v1/sandboxes/i9", 404),
        ("GET", "/v1/sandboxes/i9/usage", 404),
        ("GET", "/v1/sandboxes/i9/logs", 404),
        ("DELETE", "/v1/sandboxes/i9?reason=spite", 400),
        ("GET", "/v1/sandboxes/i9/logs?after=x", 400),
        ("GET", "/v1/images/x", 404),
        ("GET", "/v1/images/x/logs", 404),
        ("POST", "/v1/sandboxes", 405),
        ("GET", "/v2", 404),
    ],
)
def test_bad_requests_get_a_problem_body(tmp_path, method, path, status):
    async def act() -> None:
        async with scene(tmp_path, build=False) as s:
            response = await s.api.request(method, path)
            assert response.status_code == status
            assert response.json()["code"] == status
            assert response.json()["message"]

    play(act)


def test_usage_and_stop_all(tmp_path):
    async def act() -> None:
        async with scene(tmp_path) as s:
            await s.start(spec("i1"))
            await s.start(spec("i2"))
            usage = (await s.api.get("/v1/sandboxes/usage")).json()["usage"]
            assert set(usage) == {"i1", "i2"}
            assert usage["i1"]["mem_total"] == 512 * 2**20
            assert (await s.api.get("/v1/sandboxes/i1/usage")).status_code == 200
            assert (await s.api.delete("/v1/sandboxes")).status_code == 204
            assert (await s.api.get("/v1/sandboxes/usage")).json() == {"usage": {}}

    play(act)


def test_a_burst_of_sandboxes_comes_and_goes(tmp_path):
    async def act() -> None:
        async with scene(tmp_path, places_ready=3) as s:
            names = [f"i{number}" for number in range(60)]
            async with asyncio.TaskGroup() as tasks:
                for name in names:
                    tasks.create_task(s.start(spec(name)))
            assert s.node.supervisor.count == 60
            async with asyncio.TaskGroup() as tasks:
                for name in names:
                    tasks.create_task(s.api.delete(f"/v1/sandboxes/{name}"))
            await s.node.places.close()
            assert s.slots() == set()

    play(act)


def test_purge_leaves_nothing(tmp_path):
    async def act() -> None:
        async with scene(tmp_path, places_ready=1) as s:
            await s.start(spec())
        machine = make_machine(Settings(data_dir=tmp_path, driver="fake", instance="nsv"))
        assert (await machine.purge()).startswith("removed ")
        assert s.slots() == set()
        async with scene(tmp_path, build=False) as s:
            assert (await s.report()).stop_reason is StopReason.KILLED

    play(act)
