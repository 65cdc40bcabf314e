"""What the SDK's helpers send for templates that do not ship is taken like any other step."""

import json
from typing import Any

import pytest
from control_fixture import InWorld, in_world
from control_world import World
from e2b import Template
from test_control_builds import build, request, start

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
