"""For Alcove's own processes: where the edge finds a sandbox, and what `alcove status` shows."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel
from starlette.responses import Response

from alcove._version import __version__
from alcove.control.api import errors, json_response
from alcove.control.clock import rfc3339
from alcove.control.db import Database
from alcove.control.errors import NotFoundError
from alcove.control.nodes.service import Node, Nodes
from alcove.control.sandboxes import store
from alcove.control.sandboxes.routes import SandboxesService, SandboxIdOf
from alcove.control.teams.auth import Cluster
from alcove.control.templates.service import Templates
from alcove.control.templates.store import Build
from alcove.wire.states import BuildState, SandboxState

router = APIRouter(prefix="/internal", tags=["internal"], dependencies=[Cluster])


class Route(BaseModel):
    """What the edge must know to reach a sandbox."""

    sandbox_id: str
    generation: int
    state: SandboxState
    node_ingress: str
    access_token: str
    traffic_token: str | None
    mask_request_host: str | None


class Status(BaseModel):
    """What `alcove status` shows."""

    version: str
    ready: bool
    problems: list[str]
    nodes: list[dict[str, Any]]
    templates: list[dict[str, Any]]
    sandboxes: dict[str, int]


@router.get("/routes/{sandbox_id}", response_model=Route, responses=errors(404))
async def route(sandbox_id: SandboxIdOf, sandboxes: SandboxesService) -> Response:
    routed = await sandboxes.route(sandbox_id)
    if routed is None:
        raise NotFoundError("The sandbox was not found")
    return json_response(
        {
            "sandbox_id": routed.sandbox_id,
            "generation": routed.generation,
            "state": SandboxState.RUNNING.value,
            "node_ingress": routed.node_ingress,
            "access_token": routed.access_token,
            "traffic_token": routed.traffic_token,
            "mask_request_host": routed.mask_request_host,
        }
    )


async def _nodes(request: Request) -> Nodes:
    nodes: Nodes = request.app.state.nodes
    return nodes


async def _templates(request: Request) -> Templates:
    templates: Templates = request.app.state.templates
    return templates


@router.get("/status", response_model=Status, responses=errors())
async def status(
    request: Request,
    nodes: Annotated[Nodes, Depends(_nodes)],
    templates: Annotated[Templates, Depends(_templates)],
) -> Response:
    db: Database = request.app.state.db
    async with db.reading() as tx:
        counts = await store.count_by_state(tx)
    shown = []
    for template, names, build in await templates.shipped():
        shown.append(
            {"template_id": template.id, "aliases": names} | await _build_json(templates, build)
        )
    problems = nodes.problems()
    return json_response(
        {
            "version": __version__,
            "ready": not problems,
            "problems": problems,
            "nodes": [_node_json(node) for node in nodes.all()],
            "templates": shown,
            "sandboxes": {state.value: number for state, number in counts.items()},
        }
    )


def _node_json(node: Node) -> dict[str, Any]:
    return {
        "node_id": node.node_id,
        "ingress": node.ingress,
        "problems": node.problems(),
        "report": None if node.report is None else node.report.to_json(),
    }


async def _build_json(templates: Templates, build: Build) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "build_id": build.id,
        "state": build.state.value,
        "reason": build.reason,
        "begun_at": rfc3339(build.created_at),
        "progress": "",
    }
    if build.state is not BuildState.READY and (entries := await templates.log_of(build)):
        last = entries[-1]
        step = last.fields.get("step")
        shown["progress"] = f"{step}: {last.message}" if step else last.message
    return shown
