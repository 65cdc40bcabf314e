"""PPIO's list of events and its reset."""

import pytest
from control_fixture import InWorld, in_world
from control_world import World

from alcove.control.clock import MICROSECONDS
from alcove.control.nodes.client import NodeFullError

__all__ = ["in_world"]

DAY = 24 * 3600


async def names(world: World, **query: object) -> list[str]:
    answer = await world.http.get("/sandboxes/events", params=query)
    assert answer.status_code == 200, answer.text
    return [item["eventName"] for item in answer.json()["items"]]


def test_events_by_their_names(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        source = await world.create()
        await world.http.post(f"/sandboxes/{source}/snapshots", json={})
        await world.http.post(f"/sandboxes/{source}/timeout", json={"timeout": 900})
        await world.http.post(f"/sandboxes/{source}/pause")
        await world.http.post(f"/v2/sandboxes/{source}/connect", json={})
        [child] = (await world.http.post(f"/sandboxes/{source}/fork", json={})).json()
        child_id = child["sandbox"]["sandboxID"]
        await world.http.delete(f"/sandboxes/{source}")
        in_order = ["create", "snapshot", "timeout", "pause", "resume", "clone", "delete"]
        assert await names(world, sandboxID=source, orderAsc=True) == in_order
        assert await names(world, sandboxID=source) == in_order[::-1]
        assert await names(world, sandboxID=child_id) == ["create"]
        assert await names(world, events="pause,delete") == ["delete", "pause"]
        assert await names(world, events="connect", sandboxID=source) == ["resume"]
        assert await names(world, events="nothing") == []
        template_id = (await world.http.get("/templates")).json()[0]["templateID"]
        assert len(await names(world, templateID=template_id[3:9])) == 8
        assert await names(world, templateID="%") == []
        assert await names(world, state="failed") == []
        world.node.fail["start"] = NodeFullError("full")
        await world.http.post("/v2/sandboxes", json={"templateID": "base"})
        assert await names(world, state="failed") == ["create"]

        page = (await world.http.get("/sandboxes/events", params={"limit": 3, "offset": 1})).json()
        assert (len(page["items"]), page["total"], page["hasMore"]) == (3, 9, True)
        assert sorted(page["items"][0]) == [
            "errorMsg",
            "eventID",
            "eventName",
            "recordAt",
            "sandboxID",
            "state",
            "statusCode",
            "templateID",
            "templateName",
        ]
        page = (await world.http.get("/sandboxes/events", params={"offset": 8})).json()
        assert (len(page["items"]), page["hasMore"]) == (1, False)
        foreign = await world.other_team()
        answer = await world.http.get("/sandboxes/events", headers=foreign)
        assert answer.json() == {"items": [], "total": 0, "hasMore": False}

    in_world(scenario)


def test_the_window_of_events(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        await world.create()
        now = world.clock() // MICROSECONDS
        world.clock.forward(31 * DAY)
        assert await names(world) == []
        assert await names(world, startTime=now - 1) == ["create"]
        assert await names(world, endTime=now - 1) == []
        for wrong in (
            {"startTime": now, "endTime": now - 1},
            {"startTime": now - 61 * DAY, "endTime": now},
            {"limit": 101},
            {"limit": 0},
            {"offset": -1},
            {"sandboxID": "a/b"},
            {"state": "x"},
        ):
            answer = await world.http.get("/sandboxes/events", params=wrong)
            assert answer.status_code == 400, wrong

    in_world(scenario)


@pytest.mark.parametrize("state", ["running", "paused"])
def test_a_reset(in_world: InWorld, state: str) -> None:
    async def scenario(world: World) -> None:
        sandbox_id = await world.create(timeout=77)
        if state == "paused":
            await world.http.post(f"/sandboxes/{sandbox_id}/pause")
        answer = await world.http.post(f"/sandboxes/{sandbox_id}/reset", json={})
        assert (answer.status_code, answer.json()) == (200, {"trafficAccessToken": None})
        spec = world.node.specs[sandbox_id]
        assert (spec.reboot, spec.boots, spec.generation) == (True, 1, 2)
        assert world.node.running() == [sandbox_id]

    in_world(scenario)


@pytest.mark.parametrize("state", ["running", "paused"])
def test_a_reset_that_leaves_it_paused(in_world: InWorld, state: str) -> None:
    async def scenario(world: World) -> None:
        sandbox_id = await world.create()
        if state == "paused":
            await world.http.post(f"/sandboxes/{sandbox_id}/pause")
        body = {"resume": False, "allowPublicTraffic": False}
        answer = await world.http.post(f"/sandboxes/{sandbox_id}/reset", json=body)
        assert answer.status_code == 200
        token = answer.json()["trafficAccessToken"]
        assert token
        assert world.node.running() == []
        answer = await world.http.post(f"/v2/sandboxes/{sandbox_id}/connect", json={})
        assert (answer.status_code, answer.json()["trafficAccessToken"]) == (201, token)
        assert world.node.specs[sandbox_id].reboot

    in_world(scenario)


def test_resets_that_are_refused(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        answer = await world.http.post("/sandboxes/inothing/reset", json={})
        assert answer.status_code == 404
        sandbox_id = await world.create()
        for wrong in ({"timeout": 0}, {"network": {"allowOut": ["a.b"]}}, {"resume": "x"}):
            answer = await world.http.post(f"/sandboxes/{sandbox_id}/reset", json=wrong)
            assert answer.status_code == 400, wrong
        assert world.node.calls.get("save") is None

        async def again(method: str) -> None:
            if method == "save":
                world.node.hold = None
                answer = await world.http.post(f"/sandboxes/{sandbox_id}/reset", json={})
                assert answer.status_code == 409

        world.node.hold = again
        answer = await world.http.post(f"/sandboxes/{sandbox_id}/reset", json={})
        assert answer.status_code == 200

    in_world(scenario)


def test_logs_and_metrics_of_forked_and_paused_ones(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        source = await world.create()
        [child] = (await world.http.post(f"/sandboxes/{source}/fork", json={})).json()
        child_id = child["sandbox"]["sandboxID"]
        await world.app.state.sampler.step()
        await world.http.post(f"/sandboxes/{source}/pause")
        await world.app.state.sampler.step()
        told = [entry["message"] for entry in (await logs(world, source))]
        assert {"Sandbox started", "Sandbox forked", "Sandbox paused"} <= set(told)
        assert "Sandbox started" in [entry["message"] for entry in await logs(world, child_id)]
        for sandbox_id, points in ((source, 1), (child_id, 2)):
            found = (await world.http.get(f"/sandboxes/{sandbox_id}/metrics")).json()
            assert len(found) == points
        query = {"sandbox_ids": f"{source},{child_id}"}
        newest = (await world.http.get("/sandboxes/metrics", params=query)).json()
        assert sorted(newest["sandboxes"]) == sorted([source, child_id])

    in_world(scenario)


async def logs(world: World, sandbox_id: str) -> list[dict]:
    answer = await world.http.get(f"/v2/sandboxes/{sandbox_id}/logs")
    assert answer.status_code == 200
    return answer.json()["logs"]
