"""The HTTP API (contract e2b 6.1). Errors are plain text."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from . import requests
from .context import Closed, Context, Execution
from .contexts import Contexts, TooManyContextsError, UnknownLanguageError, describe
from .kernel import KernelError
from .requests import BadRequestError
from .settings import Settings
from .stream import LineStream

_log = logging.getLogger(__name__)


class _NotFoundError(Exception):
    def __init__(self, context_id: str) -> None:
        super().__init__(f"Context {context_id} not found")


class Api:
    def __init__(self, contexts: Contexts) -> None:
        self._contexts = contexts

    def routes(self) -> list[Route]:
        return [
            Route("/health", self.health, methods=["GET"]),
            Route("/execute", self.execute, methods=["POST"]),
            Route("/rehearse", self.rehearse, methods=["POST"]),
            Route("/contexts", self.create, methods=["POST"]),
            Route("/contexts", self.listing, methods=["GET"]),
            Route("/contexts/{context_id}", self.delete, methods=["DELETE"]),
            Route("/contexts/{context_id}/restart", self.restart, methods=["POST"]),
        ]

    async def health(self, _: Request) -> Response:
        if not self._contexts.ready:
            return PlainTextResponse(f"Not ready: {self._contexts.problem}", 503)
        return JSONResponse("OK")

    async def execute(self, request: Request) -> Response | LineStream:
        wanted = requests.execute_request(await _body(request))
        if wanted.context_id:
            context = self._named(wanted.context_id)
        else:
            context = await self._contexts.default(wanted.language)
        for name in wanted.env_vars:
            if not context.language.takes(name):
                raise BadRequestError(
                    f"env_vars: '{name}' cannot be the name of a variable in "
                    f"{context.language.name}"
                )
        execution = Execution(wanted.code, wanted.env_vars, request.headers.get("x-access-token"))
        return LineStream(lambda write: context.execute(execution, write))

    async def rehearse(self, request: Request) -> LineStream:
        """What a restored snapshot's first execution would have to wait for, done ahead."""
        await _body(request)
        return LineStream(self._contexts.rehearse)

    async def create(self, request: Request) -> Response:
        wanted = requests.context_request(await _body(request))
        return JSONResponse(describe(await self._contexts.create(wanted.language, wanted.cwd)))

    async def listing(self, _: Request) -> Response:
        return JSONResponse(self._contexts.listing())

    async def delete(self, request: Request) -> Response:
        self._contexts.delete(self._named(request.path_params["context_id"]))
        return JSONResponse(None)

    async def restart(self, request: Request) -> Response:
        context_id = request.path_params["context_id"]
        try:
            await self._named(context_id).restart()
        except Closed as error:
            raise _NotFoundError(context_id) from error
        return JSONResponse(None)

    def _named(self, context_id: str) -> Context:
        context = self._contexts.get(context_id)
        if context is None:
            raise _NotFoundError(context_id)
        return context


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > requests.LARGEST_BODY_BYTES:
            limit = requests.LARGEST_BODY_BYTES >> 20
            raise BadRequestError(f"The body has more than {limit} MiB", 413)
    return bytes(body)


async def _explain(_: Request, error: Exception) -> Response:
    match error:
        case _NotFoundError():
            status = 404
        case BadRequestError():
            status = error.status
        case TooManyContextsError():
            status = 429
        case ClientDisconnect():
            status = 499  # nobody is there to read it
        case _:
            status = 500
    return PlainTextResponse(str(error), status)


def build_app(settings: Settings) -> Starlette:
    contexts = Contexts(settings)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await contexts.open()
        try:
            yield
        finally:
            await contexts.close()

    known = (
        _NotFoundError,
        BadRequestError,
        TooManyContextsError,
        UnknownLanguageError,
        KernelError,
        ClientDisconnect,
    )
    return Starlette(
        routes=Api(contexts).routes(),
        lifespan=lifespan,
        middleware=[
            Middleware(
                CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"]
            )
        ],
        exception_handlers=dict.fromkeys(known, _explain),
    )
