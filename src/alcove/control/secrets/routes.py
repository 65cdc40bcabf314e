"""/secrets: HTTP in, HTTP out."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import Response

from alcove.control.api import (
    MAX_INT64,
    NEXT_TOKEN_HEADER,
    Limit,
    NextToken,
    Text,
    decode_cursor,
    encode_cursor,
    errors,
    invalid_cursor,
    json_response,
)
from alcove.control.clock import rfc3339
from alcove.control.secrets import schemas
from alcove.control.secrets.service import Secrets
from alcove.control.secrets.store import Secret
from alcove.control.teams.auth import CallerOf

router = APIRouter(tags=["secrets"])

Selector = Annotated[Text, Path(description="Id or name; what begins with sec_ is an id.")]


async def _secrets(request: Request) -> Secrets:
    secrets: Secrets = request.app.state.secrets
    return secrets


SecretsService = Annotated[Secrets, Depends(_secrets)]


@router.post("/secrets", status_code=201, response_model=schemas.Secret, responses=errors(409))
async def create_secret(
    caller: CallerOf, secrets: SecretsService, body: schemas.NewSecret
) -> Response:
    """Store a secret; its value is never shown again."""
    value = body.value.get_secret_value()
    made = await secrets.create(caller, body.name, value, body.metadata or {})
    return json_response(_shown(made), 201)


@router.get("/secrets", response_model=list[schemas.Secret], responses=errors())
async def list_secrets(
    caller: CallerOf, secrets: SecretsService, limit: Limit = 100, next_token: NextToken = ""
) -> Response:
    """The team's secrets, newest first, without values."""
    after = _read_cursor(next_token) if next_token else None
    found = await secrets.page(caller, after=after, limit=limit + 1)
    headers = {}
    if len(found) > limit:
        found = found[:limit]
        headers[NEXT_TOKEN_HEADER] = encode_cursor(found[-1].created_at, found[-1].id)
    return json_response([_shown(secret) for secret in found], headers=headers)


@router.get("/secrets/{secret_id}", response_model=schemas.Secret, responses=errors(404))
async def get_secret(caller: CallerOf, secrets: SecretsService, secret_id: Selector) -> Response:
    return json_response(_shown(await secrets.get(caller, secret_id)))


@router.post("/secrets/{secret_id}", response_model=schemas.Secret, responses=errors(404))
async def update_secret(
    caller: CallerOf, secrets: SecretsService, secret_id: Selector, body: schemas.SecretUpdate
) -> Response:
    """Give a secret a new value. Metadata that is left out is kept."""
    value = body.value.get_secret_value()
    return json_response(_shown(await secrets.update(caller, secret_id, value, body.metadata)))


@router.delete("/secrets/{secret_id}", status_code=204, responses=errors(404))
async def delete_secret(caller: CallerOf, secrets: SecretsService, secret_id: Selector) -> Response:
    """Destroy a secret with all its versions."""
    await secrets.delete(caller, secret_id)
    return Response(status_code=204)


def _read_cursor(token: str) -> tuple[int, str]:
    at, last = decode_cursor(token, 2)
    if not (at.isascii() and at.isdecimal() and int(at) <= MAX_INT64) or "\x00" in last:
        raise invalid_cursor()
    return int(at), last


def _shown(secret: Secret) -> dict[str, Any]:
    return {
        "secretID": secret.id,
        "name": secret.name,
        "currentVersion": secret.current_version,
        "metadata": secret.metadata,
        "createdAt": rfc3339(secret.created_at),
        "updatedAt": rfc3339(secret.updated_at),
    }
