"""POST /init: the node tells a guest which sandbox it is, at start and after every restore.

Idempotent. Everything is checked before anything is changed (contract e2b 3.1). Template builds
call it too, without a sandbox's name or token: what it does then need not be done in each sandbox.
The answer says what it made this sandbox's own: {"changes": {"hostname": true, ...}}.
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from alcove.guest.app import Route
from alcove.guest.auth import TOKEN_HEADER, UNAUTHORIZED
from alcove.guest.children import Children
from alcove.guest.environment import Environment
from alcove.guest.http import HttpError, Request, Response
from alcove.guest.machine import Machine
from alcove.guest.mounts import Mounts
from alcove.guest.mounts import parse as parse_mounts
from alcove.wire import tokens

Changes = dict[str, bool | int | float]

_MAX_BODY_BYTES = 8 * 1024 * 1024
_EVERY_PROCESS = -1


@dataclass(frozen=True, slots=True)
class _Given:
    """The fields of the body, checked; None or empty where absent."""

    env_vars: dict[str, str]
    access_token: str | None
    timestamp_s: float | None
    default_user: str | None
    default_workdir: str | None
    hostname: str | None
    sandbox_id: str | None
    template_id: str | None
    lifecycle_id: str | None
    ca_bundle: str | None
    boots: int | None
    reseed: bool | None
    max_processes: int | None
    volumes: dict[str, str] | None


def routes(
    environment: Environment,
    machine: Machine | None,
    children: Children,
    renew: Callable[[], None],
    mounts: Mounts,
) -> list[Route]:
    """`machine` None: the agent does not own what it runs on and leaves it alone.

    `renew` makes the loop's event queue anew: one that was restored may be broken.
    """

    async def init(request: Request) -> Response:
        given = _parse(await request.read(_MAX_BODY_BYTES))
        _authorize(request, given, environment)
        renew()
        changes = _apply(given, environment, children)
        if machine is not None:
            changes |= _change_machine(given, environment, machine)
            if given.volumes is not None:
                changes["volumes"] = mounts.become(given.volumes)
        return Response.json({"changes": changes})

    return [("POST", "/init", init)]


def _authorize(request: Request, given: _Given, environment: Environment) -> None:
    """A guest that has a token takes orders from those who know it: in the header, or the body."""
    known = environment.access_token
    if known is None:
        return
    offers = (request.header(TOKEN_HEADER), given.access_token)
    if not any(offer is not None and tokens.same(offer, known) for offer in offers):
        raise HttpError(401, UNAUTHORIZED)


def _apply(given: _Given, environment: Environment, children: Children) -> Changes:
    changes: Changes = {
        "sandbox_id": given.sandbox_id not in {None, environment.sandbox_id},
        "token": given.access_token not in {None, environment.access_token},
        "env_vars": len(given.env_vars.items() - environment.env_vars.items()),
    }
    # Who was told nothing else draws new numbers when it becomes another sandbox: one that goes on
    # after a pause keeps the order of numbers that its programs asked for by a seed.
    reseed = changes["sandbox_id"] if given.reseed is None else given.reseed
    environment.boots = given.boots or (0 if changes["sandbox_id"] else environment.boots)
    environment.env_vars.update(given.env_vars)
    environment.access_token = given.access_token or environment.access_token
    environment.default_user = given.default_user or environment.default_user
    environment.default_workdir = given.default_workdir or environment.default_workdir
    environment.sandbox_id = given.sandbox_id or environment.sandbox_id
    environment.template_id = given.template_id or environment.template_id
    environment.lifecycle_id = given.lifecycle_id or environment.lifecycle_id
    environment.max_processes = given.max_processes or environment.max_processes
    _announce(environment)
    if reseed:
        _reseed(children)
    return changes | {"entropy": bool(reseed)}


def _announce(environment: Environment) -> None:
    """Variables by which programs notice that they are in a sandbox (contract e2b 4.6)."""
    environment.env_vars["E2B_SANDBOX"] = "true"
    if environment.sandbox_id is not None:
        environment.env_vars["E2B_SANDBOX_ID"] = environment.sandbox_id
    if environment.template_id is not None:
        environment.env_vars["E2B_TEMPLATE_ID"] = environment.template_id


def _reseed(children: Children) -> None:
    """Clones of one snapshot must not draw the same numbers.

    SIGURG is ignored by programs that do not ask for it; the Python of our templates does, and
    seeds its generators anew (docs/reference/clones.md).
    """
    random = sys.modules.get("random")
    if random is not None:
        random.seed()
    for pid in [_EVERY_PROCESS] if os.getpid() == 1 else children.pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGURG)


def _change_machine(given: _Given, environment: Environment, machine: Machine) -> Changes:
    changes: Changes = {}
    if given.timestamp_s is not None:
        changes["clock_s"] = machine.set_clock(given.timestamp_s)
    if given.hostname is not None:
        changes["hostname"] = machine.set_hostname(given.hostname)
    changes["boot_id"] = machine.set_boot_id(environment.sandbox_id or "", environment.boots)
    if given.ca_bundle is not None:
        for name, value in machine.trust(given.ca_bundle).items():
            environment.env_vars.setdefault(name, value)
    machine.mark(environment.sandbox_id, environment.template_id)
    return changes


def _parse(body: bytes) -> _Given:
    try:
        data = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        raise HttpError(400, f"the body is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise HttpError(400, "the body must be a JSON object")
    return _Given(
        env_vars=_env_vars(data.get("envVars")),
        access_token=_text(data, "accessToken"),
        timestamp_s=_timestamp_s(data.get("timestamp")),
        default_user=_text(data, "defaultUser"),
        default_workdir=_text(data, "defaultWorkdir"),
        hostname=_text(data, "hostname"),
        sandbox_id=_text(data, "sandboxId"),
        template_id=_text(data, "templateId"),
        lifecycle_id=_text(data, "lifecycleID"),
        ca_bundle=_text(data, "caBundle"),
        boots=_boots(data.get("boots")),
        reseed=_flag(data, "reseed"),
        max_processes=_max_processes(data.get("limits")),
        volumes=parse_mounts(data.get("volumeMounts")),
    )


def _text(data: dict[str, Any], name: str) -> str | None:
    value = data.get(name)
    if value is not None and not isinstance(value, str):
        raise HttpError(400, f"{name} must be a text")
    return value or None


def _flag(data: dict[str, Any], name: str) -> bool | None:
    value = data.get(name)
    if value is not None and not isinstance(value, bool):
        raise HttpError(400, f"{name} must be true or false")
    return value


def _boots(value: Any) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise HttpError(400, "boots must be a whole number")
    return value


def _env_vars(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise HttpError(400, "envVars must be an object of texts")
    for name, text in value.items():
        if not isinstance(text, str) or "\0" in text:
            raise HttpError(400, f"envVars.{name} must be a text without NUL bytes")
        if not name or "=" in name or "\0" in name:
            raise HttpError(400, f"envVars: '{name}' cannot be the name of a variable")
    return value


def _timestamp_s(value: Any) -> float | None:
    """Seconds since the epoch, given as a number or as RFC 3339."""
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except ValueError as error:
        raise HttpError(400, "timestamp must be RFC 3339 or seconds since the epoch") from error


def _max_processes(value: Any) -> int | None:
    if value is None:
        return None
    count = value.get("nproc") if isinstance(value, dict) else 0
    if count is None:
        return None
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise HttpError(400, "limits.nproc must be a whole number above zero")
    return count
