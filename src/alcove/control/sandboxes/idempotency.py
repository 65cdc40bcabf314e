"""Idempotency keys of creates: one row per key, committed with the intent it stands for."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, insert, select

from alcove.control.clock import MICROSECONDS
from alcove.control.db import Tx
from alcove.control.sandboxes.tables import idempotency_keys
from alcove.wire.ids import SandboxId, TeamId

LIFETIME_US = 24 * 3600 * MICROSECONDS


@dataclass(frozen=True, slots=True)
class Idempotency:
    key: str
    body_hash: str


@dataclass(frozen=True, slots=True)
class Used:
    """An earlier request with the same key."""

    body_hash: str
    sandbox_id: SandboxId


def hash_body(body: dict[str, Any]) -> str:
    """The same for two bodies that mean the same, whatever the order of their fields."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


async def find(tx: Tx, team_id: TeamId, key: str, now: int) -> Used | None:
    row = (
        await tx.execute(
            select(idempotency_keys.c.body_hash, idempotency_keys.c.sandbox_id).where(
                idempotency_keys.c.team_id == team_id,
                idempotency_keys.c.key == key,
                idempotency_keys.c.created_at > now - LIFETIME_US,
            )
        )
    ).one_or_none()
    return None if row is None else Used(*row)


async def claim(
    tx: Tx, team_id: TeamId, wanted: Idempotency, sandbox_id: SandboxId, now: int
) -> None:
    """Take the key for this sandbox; one that is too old to be replayed is replaced."""
    await tx.execute(
        delete(idempotency_keys).where(
            idempotency_keys.c.team_id == team_id, idempotency_keys.c.key == wanted.key
        )
    )
    await tx.execute(
        insert(idempotency_keys).values(
            team_id=team_id,
            key=wanted.key,
            body_hash=wanted.body_hash,
            sandbox_id=sandbox_id,
            created_at=now,
        )
    )


async def purge(tx: Tx, *, before: int) -> None:
    await tx.execute(delete(idempotency_keys).where(idempotency_keys.c.created_at < before))
