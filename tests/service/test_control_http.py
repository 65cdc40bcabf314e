"""Control on a real socket: heads that never end, clients that go away; CORS, health, errors."""

import asyncio
import contextlib
import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import httpx
import pytest
import structlog
from control_fixture import InWorld, in_world
from control_world import World, served, world

from alcove.control.asgi import MAX_HEAD_BYTES, BodyLimit
from alcove.control.nodes.service import NOT_ASKED

__all__ = ["in_world"]


def test_a_head_that_never_ends_is_cut_off(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as here, served(here) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n")
            with contextlib.suppress(ConnectionError):
                for _ in range(2 * MAX_HEAD_BYTES // 8192):
                    writer.write(b"X-Filler: " + b"a" * 8180 + b"\r\n")
                    await writer.drain()
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 431 ")
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == 431
            writer.close()

    asyncio.run(scenario())


def test_a_head_that_comes_too_slowly_is_cut_off(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as here, served(here, head_timeout_s=0.1) as port:
            for sent, answered in (
                (b"", b""),
                (b"GET /health HTTP/1.1\r\nHost", b"HTTP/1.1 408 "),
            ):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(sent)
                async with asyncio.timeout(10):
                    assert (await reader.read())[:13] == answered
                writer.close()
            # One that idles between two requests is not slow: that has a limit of its own.
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(2):
                writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                await reader.readuntil(b"successful")
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await reader.read(1)
            writer.close()

    asyncio.run(scenario())


def test_many_requests_on_one_connection_are_not_one_long_head(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as here, served(here) as port:
            limits = httpx.Limits(max_connections=1)
            filler = {"X-Filler": "a" * 8000, "X-API-Key": here.key}
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", limits=limits, headers=filler
            ) as http:
                for _ in range(20):
                    answer = await http.post("/api-keys", json={"name": "n" * 150})
                    assert answer.status_code == 201

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("silence_s", "total_s"), [(0.05, 30.0), (30.0, 0.2)], ids=["silent", "trickling"]
)
def test_a_body_that_comes_too_slowly_is_refused(
    tmp_path: Path, silence_s: float, total_s: float
) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as here:
            app = BodyLimit(here.app, 1024, silence_s=silence_s, total_s=total_s)
            async with served(here, app) as port:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(
                    b"POST /v2/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                    + f"X-API-Key: {here.key}\r\nContent-Length: 500\r\n\r\n".encode()
                )
                answer = asyncio.ensure_future(reader.read())
                while total_s < 1 and not answer.done():
                    writer.write(b" ")
                    await asyncio.wait([answer], timeout=0.02)
                head, _, body = (await answer).partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 408 ")
                assert json.loads(body) == {
                    "code": 408,
                    "message": "The request body came too slowly",
                    "error_code": "request_too_slow",
                }
                writer.close()

    asyncio.run(scenario())


def test_a_slow_answer_is_not_a_slow_body(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as here:
            app = BodyLimit(here.app, 1024, silence_s=0.05, total_s=0.05)
            async with (
                served(here, app) as port,
                httpx.AsyncClient(
                    base_url=f"http://127.0.0.1:{port}", headers={"X-API-Key": here.key}
                ) as http,
            ):

                async def hold(method: str) -> None:
                    if method == "start":
                        await asyncio.sleep(0.2)

                here.node.hold = hold
                answer = await http.post("/v2/sandboxes", json={"templateID": "base"})
                assert answer.status_code == 201

    asyncio.run(scenario())


def test_a_client_that_left_before_the_answer_leaves_no_sandbox(tmp_path: Path) -> None:
    async def scenario(keyed: str, left_running: int) -> None:
        left = asyncio.Event()
        async with world(tmp_path / keyed) as here, served(here, closed=left) as port:
            started, release = asyncio.Event(), asyncio.Event()

            async def hold(method: str) -> None:
                if method == "start":
                    started.set()
                    await release.wait()

            here.node.hold = hold
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            body = b'{"templateID": "base"}'
            writer.write(
                b"POST /v2/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                + f"X-API-Key: {here.key}\r\nContent-Length: {len(body)}\r\n{keyed}\r\n".encode()
                + body
            )
            await started.wait()
            writer.close()
            await writer.wait_closed()
            # The close has to reach the server before the node answers.
            await left.wait()
            release.set()
            async for event in here.node.events():
                if event.kind == ("sandbox.running" if keyed else "sandbox.stopped"):
                    break
            assert len(here.node.running()) == left_running

    asyncio.run(scenario("", 0))
    asyncio.run(scenario("Idempotency-Key: mine\r\n", 1))


def test_browsers_may_call_from_anywhere(in_world: InWorld) -> None:
    async def scenario(here: World) -> None:
        asked = {
            "Origin": "https://app.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "x-api-key, x-anything",
        }
        answer = await here.http.options("/v2/sandboxes", headers=asked)
        assert answer.status_code == 204
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert answer.headers["Access-Control-Allow-Headers"] == "x-api-key, x-anything"
        for path in ("/v2/sandboxes", "/nowhere"):
            answer = await here.http.get(path, headers={"Origin": "https://app.example"})
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
            assert "X-Next-Token" in answer.headers["Access-Control-Expose-Headers"]

    in_world(scenario)


async def not_ready(here: World, problem: str) -> None:
    answer = await here.http.get("/ready")
    assert answer.status_code == answer.json()["code"] == 503
    assert answer.json()["message"] == problem
    status = (await here.http.get("/internal/status", headers=here.cluster)).json()
    assert (status["ready"], status["problems"]) == (False, [problem])
    assert status["nodes"][0]["problems"] == [problem]


def test_before_anything_is_known_control_says_so(in_world: InWorld) -> None:
    async def scenario(here: World) -> None:
        status = (await here.http.get("/internal/status", headers=here.cluster)).json()
        assert status["templates"] == []
        assert "no template is known yet" in status["problems"][0]
        here.app.state.nodes.all()[0].problem = NOT_ASKED
        await not_ready(here, "node local has not been asked yet; in a moment it will have been")

    in_world(scenario, with_template=False)


def test_health_and_readiness(in_world: InWorld) -> None:
    async def scenario(here: World) -> None:
        assert (await here.http.get("/health")).status_code == 200
        assert (await here.http.get("/ready")).status_code == 200
        here.node.reachable = False
        await here.app.state.nodes.refresh()
        await not_ready(
            here,
            "node local does not answer (the fake node is away); see `alcove logs node`",
        )
        # What it knows of templates, control also knows without the node.
        status = (await here.http.get("/internal/status", headers=here.cluster)).json()
        assert [entry["aliases"] for entry in status["templates"]] == [["base"]]
        here.node.reachable = True
        here.node.problems = ["the disk is full: remove something"]
        await here.app.state.nodes.refresh()
        await not_ready(here, "node local: the disk is full: remove something")

    in_world(scenario)


def test_unknown_routes_and_methods_answer_json(in_world: InWorld) -> None:
    async def scenario(here: World) -> None:
        for method, path, status in (
            ("GET", "/nowhere", 404),
            ("GET", "/sandboxes/", 404),
            ("GET", "//sandboxes", 404),
            ("PUT", "/sandboxes", 405),
            ("BREW", "/sandboxes", 405),
        ):
            answer = await here.http.request(method, path)
            assert (answer.status_code, answer.json()["code"]) == (status, status)
        assert answer.headers["Allow"]

    in_world(scenario)


def test_what_nobody_caught_is_a_500_with_an_id(in_world: InWorld) -> None:
    async def scenario(here: World) -> None:
        async def broken(_method: str) -> None:
            raise RuntimeError("a bug, with secrets in its text")

        sandbox_id = await here.create()
        here.node.hold = broken
        answer = await here.http.get(f"/sandboxes/{sandbox_id}/logs")
        assert (answer.status_code, answer.json()["code"]) == (500, 500)
        assert "secrets" not in answer.text
        assert answer.headers["X-Request-Id"] in answer.json()["message"]

    in_world(scenario)


@contextlib.contextmanager
def log_that_fails() -> Iterator[None]:
    def fail(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = structlog.get_config()
    structlog.configure(processors=[fail])
    try:
        yield
    finally:
        structlog.configure(**before)


def test_a_log_that_cannot_be_written_fails_no_request(in_world: InWorld) -> None:
    async def scenario(here: World) -> None:
        async def broken(_method: str) -> None:
            raise RuntimeError("a bug")

        sandbox_id = await here.create()
        with log_that_fails():
            answer = await here.http.get("/v2/sandboxes")
            assert answer.status_code == 200
            here.node.hold = broken
            answer = await here.http.get(f"/sandboxes/{sandbox_id}/logs")
            assert (answer.status_code, answer.json()["code"]) == (500, 500)

    in_world(scenario)


def test_metrics_name_no_ids(in_world: InWorld) -> None:
    async def scenario(here: World) -> None:
        sandbox_id = await here.create()
        await here.http.get(f"/sandboxes/{sandbox_id}")
        text = (await here.http.get("/metrics", headers=here.cluster)).text
        assert "alcove_control_sandboxes_running 1.0" in text
        assert 'route="/sandboxes/{sandbox_id}"' in text
        assert sandbox_id not in text

    in_world(scenario)
