"""Who may call: the access token and signatures of file operations (contract e2b 3.1, 3.3)."""

import time

from alcove.guest.environment import Environment
from alcove.guest.http import HttpError, Request
from alcove.wire import tokens

TOKEN_HEADER = "x-access-token"  # noqa: S105 - the name of a header

UNAUTHORIZED = (
    "unauthorized access, please provide a valid access token or method signing if supported"
)
_OPERATIONS = {"GET": "read", "HEAD": "read", "POST": "write"}


def authorize(request: Request, environment: Environment) -> None:
    """Raise HttpError 401 unless the request carries the sandbox's token, if it has one."""
    if environment.access_token is None:
        return
    offered = request.header(TOKEN_HEADER)
    if offered is None or not tokens.same(offered, environment.access_token):
        raise HttpError(401, UNAUTHORIZED)


def authorize_files(request: Request, environment: Environment) -> None:
    """Raise HttpError 401 unless a file request carries the token or a valid signature.

    A token that is sent must be right: the signature is then not looked at.
    """
    if environment.access_token is None:
        return
    if request.header(TOKEN_HEADER) is not None:
        authorize(request, environment)
        return
    signature = request.query.get("signature")
    if not signature:
        raise HttpError(401, "missing signature query parameter")
    expiration = _expiration(request.query.get("signature_expiration"))
    expected = tokens.file_signature(
        request.query.get("path", ""),
        _OPERATIONS[request.method],
        request.query.get("username", ""),
        environment.access_token,
        expiration,
    )
    if not tokens.same(signature, expected):
        raise HttpError(401, "invalid signature")
    if expiration is not None and expiration < time.time():
        raise HttpError(401, "signature is already expired")


def _expiration(text: str | None) -> int | None:
    if text is None:
        return None
    digits = text.removeprefix("-")
    # A text that does not read back the same was not what the client signed.
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 18):
        raise HttpError(401, "invalid signature")
    if str(int(text)) != text:
        raise HttpError(401, "invalid signature")
    return int(text)
