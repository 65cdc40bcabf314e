"""Routes of the guest: who may call what, CORS, and the answers for everything else."""

from collections.abc import Iterable

from alcove.guest.auth import authorize
from alcove.guest.environment import Environment
from alcove.guest.http import BodyTruncatedError, Handler, HttpError, Request, Response

Route = tuple[str, str, Handler]
"""Method, path, handler."""

# These decide for themselves: no token, the rules of /init, or a signature (contract e2b 3.1).
_SELF_AUTHORIZED = {"/health", "/init", "/files"}

_CORS_METHODS = "HEAD, GET, POST, PUT, PATCH, DELETE"
_CORS_EXPOSED = (
    "Grpc-Status, Grpc-Message, Grpc-Status-Details-Bin, Connect-Content-Encoding, "
    "Content-Encoding, Location, Cache-Control, X-Content-Type-Options"
)
_CORS_MAX_AGE_S = 7200


class App:
    """Finds the handler of a request. An instance is the server's Handler."""

    def __init__(self, environment: Environment, routes: Iterable[Route]) -> None:
        self._environment = environment
        self._routes: dict[str, dict[str, Handler]] = {}
        for method, path, handler in routes:
            self._routes.setdefault(path, {})[method] = handler

    @property
    def paths(self) -> frozenset[str]:
        return frozenset(self._routes)

    async def __call__(self, request: Request) -> Response:
        origin = request.header("origin")
        if origin is None:
            return await self._answer(request)
        if request.method == "OPTIONS":
            return _preflight(request)
        response = await self._error_as_answer(request)
        response.headers += [
            ("access-control-allow-origin", "*"),
            ("access-control-expose-headers", _CORS_EXPOSED),
        ]
        return response

    async def _answer(self, request: Request) -> Response:
        methods = self._routes.get(request.path)
        if request.path not in _SELF_AUTHORIZED:
            authorize(request, self._environment)
        if methods is None:
            raise HttpError(404, f"the sandbox agent has nothing at '{request.path}'")
        handler = methods.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            raise HttpError(
                405, f"{request.method} is not possible here; use {', '.join(sorted(methods))}"
            )
        return await handler(request)

    async def _error_as_answer(self, request: Request) -> Response:
        """Errors need the CORS headers too, or a browser hides them from its page."""
        try:
            return await self._answer(request)
        except HttpError as error:
            return error.response()
        except BodyTruncatedError as error:
            return HttpError(400, str(error)).response()


def _preflight(request: Request) -> Response:
    asked = request.header("access-control-request-headers")
    headers = [
        ("access-control-allow-origin", "*"),
        ("access-control-allow-methods", _CORS_METHODS),
        ("access-control-max-age", str(_CORS_MAX_AGE_S)),
        ("vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
    ]
    if asked is not None:
        headers.append(("access-control-allow-headers", asked))
    return Response(204, headers)
