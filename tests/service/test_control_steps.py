"""Steps of the SDK's helpers are taken like any other; a template can come in one request."""

import json
from typing import Any

import pytest
from control_fixture import InWorld, in_world
from control_world import World
from e2b import Template
from test_control_builds import RUN, build, follow, request, start, status

__all__ = ["in_world"]

CONTAINER = "/my-devcontainer"


def dev_container() -> Any:
    cloned = Template().from_template("devcontainer").git_clone("https://a/b.git", CONTAINER)
    prebuilt = cloned.beta_dev_container_prebuild(CONTAINER)
    return prebuilt.beta_set_dev_container_start(CONTAINER)


@pytest.mark.parametrize(
    ("template", "commands"),
    [
        (
            Template().from_template("mcp-gateway").add_mcp_server(["brave", "exa"]),
            [("mcp-gateway pull brave exa", "root")],
        ),
        (
            dev_container(),
            [
                (f"git clone https://a/b.git {CONTAINER}",),
                (f"devcontainer build --workspace-folder {CONTAINER}", "root"),
            ],
        ),
    ],
)
def test_mcp_servers_and_dev_containers(
    in_world: InWorld, template: Any, commands: list[tuple[str, ...]]
) -> None:
    sent = json.loads(Template.to_json(template))

    async def scenario(world: World) -> None:
        await build(world, sent["fromTemplate"])
        made = await request(world, "mine")
        answer = await start(world, made, **sent)
        assert answer.status_code == 202, answer.text
        await world.app.state.build_reconciler.step()
        plan = world.node.plans[made["buildID"]]
        assert [step["args"] for step in plan["steps"]] == commands
        assert plan["start_command"] == sent.get("startCmd", "")
        assert plan["ready_command"] == sent.get("readyCmd", "")

    in_world(scenario)


def test_a_template_in_one_request(in_world: InWorld) -> None:
    async def scenario(world: World) -> None:
        body = {"name": "mine:v1", "fromTemplate": "base", "steps": [RUN], "cpuCount": 1}
        answer = await world.http.post("/v1/templates", json=body)
        assert answer.status_code == 202, answer.text
        made = answer.json()
        assert made["tags"] == ["v1"]
        await follow(world)
        await follow(world)
        assert (await status(world, made))["status"] == "ready"
        assert await world.create(templateID="mine:v1")
        listed = (await world.http.get("/v1/templates", params={"limit": 1})).json()
        listed += (await world.http.get("/v2/templates")).json()[1:]
        assert made["templateID"] in {template["templateID"] for template in listed}

    in_world(scenario)


@pytest.mark.parametrize(
    ("fields", "status_code", "builds"),
    [
        ({"name": None}, 400, 0),
        ({"steps": [{"type": "X"}]}, 400, 0),
        ({"fromTemplate": "x"}, 404, 1),
    ],
)
def test_what_is_refused_does_not_wait(
    in_world: InWorld, fields: dict[str, Any], status_code: int, builds: int
) -> None:
    async def scenario(world: World) -> None:
        body = {"name": "mine", "fromTemplate": "base", "steps": [RUN]} | fields
        assert (await world.http.post("/v1/templates", json=body)).status_code == status_code
        listed = (await world.http.get("/templates")).json()
        mine = [template for template in listed if not template["isDefault"]]
        assert [template["buildStatus"] for template in mine] == ["error"] * builds

    in_world(scenario)
