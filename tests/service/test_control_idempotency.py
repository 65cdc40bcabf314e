"""Idempotency keys of creates (contract e2b 2.4)."""

import asyncio

from control_fixture import InWorld, in_world
from control_world import World

from alcove.control.nodes.client import NodeRefusedError

__all__ = ["in_world"]

BODY = {"templateID": "base", "metadata": {"a": "b", "c": "d"}}
KEY = {"Idempotency-Key": "run-1"}
DAY_S = 24 * 3600


def test_a_repeat_gets_the_same_sandbox(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        first = await world.http.post("/v2/sandboxes", json=BODY, headers=KEY)
        reordered = {"metadata": {"c": "d", "a": "b"}, "templateID": "base"}
        again = await world.http.post("/v2/sandboxes", json=reordered, headers=KEY)
        assert (first.status_code, again.status_code) == (201, 201)
        assert first.json() == again.json()
        assert world.node.calls["start"] == 1
        await world.http.delete(f"/sandboxes/{first.json()['sandboxID']}")
        again = await world.http.post("/v2/sandboxes", json=BODY, headers=KEY)
        assert again.json() == first.json()
        assert world.node.running() == []

    in_world(scenario)


def test_another_body_is_a_mistake(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        await world.http.post("/v2/sandboxes", json=BODY, headers=KEY)
        for body in (BODY | {"timeout": 7}, BODY | {"metadata": {}}):
            answer = await world.http.post("/v2/sandboxes", json=body, headers=KEY)
            assert answer.status_code == 422
            assert answer.json()["error_code"] == "idempotency_request_mismatch"
        foreign = await world.other_team()
        answer = await world.http.post("/v2/sandboxes", json=BODY, headers=KEY | foreign)
        assert answer.status_code == 201
        assert world.node.calls["start"] == 2

    in_world(scenario)


def test_while_the_first_is_carried_out_a_repeat_waits(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        started, release = asyncio.Event(), asyncio.Event()

        async def hold(method: str) -> None:
            if method == "start":
                started.set()
                await release.wait()

        world.node.hold = hold
        async with asyncio.TaskGroup() as group:
            first = group.create_task(world.http.post("/v2/sandboxes", json=BODY, headers=KEY))
            await started.wait()
            repeat = await world.http.post("/v2/sandboxes", json=BODY, headers=KEY)
            assert repeat.status_code == 409
            assert repeat.json()["error_code"] == "idempotency_in_progress"
            assert repeat.headers["Should-Retry"] == "true"
            assert repeat.headers["Retry-After"] == "1"
            release.set()
        assert first.result().status_code == 201

    in_world(scenario)


def test_two_at_once_make_one(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        async with asyncio.TaskGroup() as group:
            both = [
                group.create_task(world.http.post("/v2/sandboxes", json=BODY, headers=KEY))
                for _ in range(5)
            ]
        assert {request.result().status_code for request in both} <= {201, 409}
        assert world.node.calls["start"] == 1

    in_world(scenario)


def test_a_failed_start_gives_the_key_back(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        world.node.fail["start"] = NodeRefusedError("broken")
        answer = await world.http.post("/v2/sandboxes", json=BODY, headers=KEY)
        assert answer.status_code == 500
        world.node.fail.clear()
        answer = await world.http.post("/v2/sandboxes", json=BODY, headers=KEY)
        assert answer.status_code == 201

    in_world(scenario)


def test_a_key_is_forgotten_after_a_day(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        first = await world.http.post("/v2/sandboxes", json=BODY, headers=KEY)
        world.clock.forward(DAY_S)
        later = await world.http.post("/v2/sandboxes", json=BODY | {"timeout": 9}, headers=KEY)
        assert later.status_code == 201
        assert later.json()["sandboxID"] != first.json()["sandboxID"]

    in_world(scenario)


def test_the_form_of_a_key(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        for key in ("", "A", "a b", "a" * 256, "a_b"):
            headers = {"Idempotency-Key": key}
            answer = await world.http.post("/v2/sandboxes", json=BODY, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (400, 400), key
        answer = await world.http.post(
            "/v2/sandboxes", json=BODY, headers={"Idempotency-Key": "a" * 255}
        )
        assert answer.status_code == 201

    in_world(scenario)
