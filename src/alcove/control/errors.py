"""Errors of the control plane: a code and words for the caller, a detail for the operator.

ControlError (500)
├── InvalidRequestError       400  what was sent cannot be understood or is not allowed
├── UnauthenticatedError      401  no key, or not a valid one
├── ForbiddenError            403  it exists and is not yours
├── NotFoundError             404  it does not exist, or may not be known to
├── TooSlowError              408  the body did not come in time
├── ConflictError             409  its state forbids it
├── LengthRequiredError       411  the body comes without its length
├── TooLargeError             413  the body is larger than allowed
├── IdempotencyMismatchError  422  the key was used with another body
├── LimitReachedError         429  the team may not have more
├── CreateFailedError         500  a sandbox did not start; nothing of it is left
├── NotAvailableError         501  not in this version
└── UnavailableError          503, 504  not now: no capacity, no node, no answer in time
"""

from collections.abc import Mapping
from typing import ClassVar

from alcove.wire.errors import ErrorCode, Problem

# Clients repeat 429, 502, 503 and 504 by themselves, a few times and sooner and later than helps,
# and nothing else (contract e2b 1.5). These two say what does help.
RETRY_SOON: Mapping[str, str] = {"Should-Retry": "true", "Retry-After": "1"}
"""Nothing was done, and in a second the answer may be another."""
NO_RETRY: Mapping[str, str] = {"Should-Retry": "false"}
"""The answer stays the same until somebody does something."""


class ControlError(Exception):
    """`message` is for the caller; `detail` is logged and never sent."""

    status: ClassVar[int] = 500
    error_code: ErrorCode = ErrorCode.INTERNAL
    headers: Mapping[str, str] = {}

    def __init__(
        self,
        message: str,
        *,
        error_code: ErrorCode | None = None,
        headers: Mapping[str, str] | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        if error_code is not None:
            self.error_code = error_code
        if headers is not None:
            self.headers = headers

    def problem(self) -> Problem:
        return Problem(self.status, self.message, self.error_code)


class InvalidRequestError(ControlError):
    status = 400
    error_code = ErrorCode.INVALID_REQUEST


class UnauthenticatedError(ControlError):
    status = 401
    error_code = ErrorCode.UNAUTHENTICATED


class ForbiddenError(ControlError):
    status = 403
    error_code = ErrorCode.FORBIDDEN


class NotFoundError(ControlError):
    status = 404
    error_code = ErrorCode.NOT_FOUND


class TooSlowError(ControlError):
    status = 408
    error_code = ErrorCode.TOO_SLOW


class ConflictError(ControlError):
    status = 409
    error_code = ErrorCode.CONFLICT


class LengthRequiredError(ControlError):
    status = 411
    error_code = ErrorCode.INVALID_REQUEST


class TooLargeError(ControlError):
    status = 413
    error_code = ErrorCode.TOO_LARGE


class IdempotencyMismatchError(ControlError):
    status = 422
    error_code = ErrorCode.IDEMPOTENCY_MISMATCH


class LimitReachedError(ControlError):
    status = 429
    error_code = ErrorCode.CONCURRENT_LIMIT
    headers = NO_RETRY


class CreateFailedError(ControlError):
    status = 500
    error_code = ErrorCode.CREATE_FAILED


class NotAvailableError(ControlError):
    status = 501
    error_code = ErrorCode.NOT_AVAILABLE


class UnavailableError(ControlError):
    status = 503
    # A node is back in a second after a crash, and has room again when any sandbox of it ends.
    headers = RETRY_SOON


class TimedOutError(UnavailableError):
    status = 504
    # Its caller has waited long enough to decide for itself.
    headers = NO_RETRY
