"""Answers the edge gives itself, and how they look on the wire (contract e2b 5.1, 5.2).

RefusalError
├── BadRequestError            400 405 408 431 505   plain text; the connection is closed
├── BadRouteError              400   plain text
├── InternalRouteError         404   {"message", "path", "code"}
├── TooManyConnectionsError    503   plain text
├── ControlUnreachableError    503   {"code", "message"}; the API cannot be asked
└── SandboxRefusalError        {"sandboxId", "message", "code"}
    ├── SandboxNotFoundError       502   unknown, killed, expired: not 404, clients map only 502
    ├── PortClosedError            502   nothing listens there; has "port"
    ├── NoAnswerError              502   something listens but does not speak HTTP in time
    │   └── LifeEndedError         502   that life of the sandbox ended before it answered
    ├── TrafficTokenError          403   missing or wrong
    ├── AccessTokenError           403   a paused sandbox: this request may not wake it
    ├── ResumeDeniedError          403   it may not be woken
    ├── TransitioningError         409   it is changing its state; try again
    ├── ResumeLimitError           429   its team runs as many sandboxes as it may
    ├── UnavailableError           503   control or the node cannot be asked; try again
    ├── UnusableSnapshotError      503   it cannot be woken from what it was saved as
    └── ResumeTimeoutError         504   it did not wake in time; try again
"""

from typing import Any, ClassVar

from alcove.wire.ids import SandboxId

TRAFFIC_TOKEN_HEADER = "e2b-traffic-access-token"  # noqa: S105 - the name of a header
ACCESS_TOKEN_HEADER = "X-Access-Token"  # noqa: S105 - the name of a header


class RefusalError(Exception):
    """Something the edge answers itself; args[0] is what the client reads."""

    status: ClassVar[int] = 500
    retry_after_s: ClassVar[int | None] = None

    @property
    def message(self) -> str:
        return str(self.args[0])

    @property
    def http_status(self) -> int:
        return self.status

    def body(self) -> dict[str, Any] | None:
        """The JSON body; None for plain text."""
        return None


class BadRequestError(RefusalError):
    """The bytes cannot be trusted to be one request, so nothing after them can."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self._status = status

    @property
    def http_status(self) -> int:
        return self._status


class BadRouteError(RefusalError):
    status = 400


class InternalRouteError(RefusalError):
    status = 404

    def __init__(self, path: str) -> None:
        super().__init__("not found: this route is internal")
        self.path = path

    def body(self) -> dict[str, Any]:
        return {"message": self.message, "path": self.path, "code": self.status}


class TooManyConnectionsError(RefusalError):
    status = 503
    retry_after_s = 1

    def __init__(self) -> None:
        super().__init__("Too many connections are open, try again")


class ControlUnreachableError(RefusalError):
    status = 503
    retry_after_s = 1

    def __init__(self) -> None:
        super().__init__("The API is not reachable at the moment, try again")

    def body(self) -> dict[str, Any]:
        return {"code": self.status, "message": self.message}


class SandboxRefusalError(RefusalError):
    def __init__(self, sandbox_id: SandboxId, message: str) -> None:
        super().__init__(message)
        self.sandbox_id = sandbox_id

    def body(self) -> dict[str, Any]:
        return {"sandboxId": self.sandbox_id, "message": self.message, "code": self.status}


class SandboxNotFoundError(SandboxRefusalError):
    status = 502

    def __init__(self, sandbox_id: SandboxId) -> None:
        super().__init__(sandbox_id, "The sandbox was not found")


class PortClosedError(SandboxRefusalError):
    status = 502

    def __init__(self, sandbox_id: SandboxId, port: int) -> None:
        super().__init__(sandbox_id, "The sandbox is running but port is not open")
        self.port = port

    def body(self) -> dict[str, Any]:
        return {
            "sandboxId": self.sandbox_id,
            "message": self.message,
            "port": self.port,
            "code": self.status,
        }


class NoAnswerError(SandboxRefusalError):
    status = 502


class LifeEndedError(NoAnswerError):
    def __init__(self, sandbox_id: SandboxId) -> None:
        super().__init__(
            sandbox_id,
            "The sandbox was paused or restarted before it answered. The request may have had an "
            "effect, so it was not sent again: repeat it if that does no harm",
        )


class TrafficTokenError(SandboxRefusalError):
    status = 403

    def __init__(self, sandbox_id: SandboxId, *, missing: bool) -> None:
        super().__init__(
            sandbox_id,
            "Sandbox is secured with traffic access token. "
            f"Token header '{TRAFFIC_TOKEN_HEADER}' is missing"
            if missing
            else "Sandbox is secured with traffic access token. "
            f"Provided token in header '{TRAFFIC_TOKEN_HEADER}' is invalid",
        )


class AccessTokenError(SandboxRefusalError):
    status = 403

    def __init__(self, sandbox_id: SandboxId) -> None:
        super().__init__(
            sandbox_id,
            "The sandbox is paused and only a request with its access token resumes it. "
            f"The token in header '{ACCESS_TOKEN_HEADER}' is missing or invalid",
        )


class ResumeDeniedError(SandboxRefusalError):
    status = 403

    def __init__(self, sandbox_id: SandboxId) -> None:
        super().__init__(sandbox_id, "The sandbox is paused and traffic may not resume it")


class TransitioningError(SandboxRefusalError):
    status = 409
    retry_after_s = 1

    def __init__(self, sandbox_id: SandboxId) -> None:
        super().__init__(sandbox_id, "The sandbox is changing its state, try again")


class ResumeLimitError(SandboxRefusalError):
    status = 429
    retry_after_s = 5

    def __init__(self, sandbox_id: SandboxId) -> None:
        super().__init__(
            sandbox_id,
            "The sandbox is paused and cannot be resumed now: as many sandboxes run as its team "
            "may have, try again later",
        )


class UnavailableError(SandboxRefusalError):
    status = 503
    retry_after_s = 1


class UnusableSnapshotError(SandboxRefusalError):
    status = 503

    def __init__(self, sandbox_id: SandboxId) -> None:
        super().__init__(
            sandbox_id,
            "The sandbox is paused and its snapshot cannot be used. Its owner learns why by "
            "resuming it through the API",
        )


class ResumeTimeoutError(SandboxRefusalError):
    status = 504
    retry_after_s = 1

    def __init__(self, sandbox_id: SandboxId, limit_s: float) -> None:
        super().__init__(
            sandbox_id, f"The sandbox was not resumed within {limit_s:.0f} seconds, try again"
        )
