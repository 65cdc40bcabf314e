"""Bodies of requests, checked; what is wrong with one is said in plain text."""

import json
from dataclasses import dataclass
from typing import Any

LARGEST_BODY_BYTES = 64 * 1024 * 1024


class BadRequestError(Exception):
    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class ExecuteRequest:
    code: str
    context_id: str | None
    language: str | None
    env_vars: dict[str, str]


@dataclass(frozen=True, slots=True)
class ContextRequest:
    language: str | None
    cwd: str | None


def execute_request(body: bytes) -> ExecuteRequest:
    data = _object(body)
    code = data.get("code")
    if not isinstance(code, str):
        raise BadRequestError("code must be given as a text")
    wanted = ExecuteRequest(
        code, _text(data, "context_id"), _text(data, "language"), _env_vars(data.get("env_vars"))
    )
    if wanted.context_id and wanted.language:
        raise BadRequestError("Only one of context_id or language can be provided", 400)
    return wanted


def context_request(body: bytes) -> ContextRequest:
    data = _object(body) if body.strip() else {}
    cwd = _text(data, "cwd")
    if cwd and "\0" in cwd:
        raise BadRequestError("cwd must not contain NUL")
    return ContextRequest(_text(data, "language"), cwd)


def _object(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"The body is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise BadRequestError("The body must be a JSON object")
    return data


def _text(data: dict[str, Any], name: str) -> str | None:
    value = data.get(name)
    if value is not None and not isinstance(value, str):
        raise BadRequestError(f"{name} must be a text")
    return value or None


def _env_vars(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequestError("env_vars must be an object of texts")
    for name, text in value.items():
        if not isinstance(text, str) or "\0" in text:
            raise BadRequestError(f"env_vars.{name} must be a text without NUL")
        if not name or "=" in name or "\0" in name:
            raise BadRequestError(f"env_vars: '{name}' cannot be the name of a variable")
    return value
