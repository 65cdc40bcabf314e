"""Whether control is alive, whether sandboxes can be made, and its metrics."""

import structlog
from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import PlainTextResponse, Response

from alcove.control import metrics
from alcove.control.api import Error, errors, json_response
from alcove.control.sandboxes import store as sandbox_store
from alcove.control.sandboxes.states import State
from alcove.control.teams.auth import Cluster
from alcove.wire.errors import Problem

_log = structlog.get_logger()


def add_routes(app: FastAPI) -> None:
    @app.get("/health", tags=["health"], response_class=PlainTextResponse)
    async def health() -> Response:
        """The process answers."""
        return PlainTextResponse("Health check successful")

    @app.get(
        "/ready",
        tags=["health"],
        response_class=Response,
        responses={503: {"model": Error, "description": "Not ready; the message says why"}},
    )
    async def ready(request: Request) -> Response:
        """Sandboxes can be made: the database and a node answer."""
        problems = list(request.app.state.nodes.problems())
        try:
            await request.app.state.db.ping()
        except Exception as error:
            _log.warning("database.unreachable", why=str(error))
            problems.append("the database does not answer; see `alcove logs control`")
        if problems:
            return json_response(Problem(503, "; ".join(problems)).body(), 503)
        return json_response({"ready": True})

    @app.get(
        "/metrics",
        tags=["internal"],
        dependencies=[Cluster],
        response_class=Response,
        responses={**errors(), 200: {"content": {"text/plain": {}}}},
    )
    async def read_metrics(request: Request) -> Response:
        """Prometheus metrics of this process."""
        async with request.app.state.db.reading() as tx:
            counts = await sandbox_store.count_by_state(tx)
        metrics.sandboxes_running.set(counts[State.RUNNING])
        metrics.sandboxes_paused.set(counts[State.PAUSED])
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
