"""Secrets of a team: made, given new values, listed, destroyed. What reads values is not here."""

import secrets as random
from collections.abc import Callable, Mapping
from dataclasses import replace

from alcove.control.clock import now_us
from alcove.control.db import Database, Tx
from alcove.control.errors import ConflictError, InvalidRequestError, NotFoundError
from alcove.control.secrets import store
from alcove.control.secrets.sealing import Sealer
from alcove.control.secrets.store import Secret
from alcove.control.teams import store as teams
from alcove.control.teams.service import Caller
from alcove.wire.errors import ErrorCode

ID_PREFIX = "sec_"
MAX_SECRETS = 1000
_KEPT_VERSIONS = 10


class Secrets:
    def __init__(self, db: Database, sealer: Sealer, clock: Callable[[], int] = now_us) -> None:
        self._db = db
        self._sealer = sealer
        self._clock = clock

    async def create(
        self, caller: Caller, name: str, value: str, metadata: Mapping[str, str]
    ) -> Secret:
        name = name.lower()
        if name.startswith(ID_PREFIX):
            raise InvalidRequestError(f"name: '{ID_PREFIX}' begins the ids of secrets")
        now = self._clock()
        made = Secret(
            id=ID_PREFIX + random.token_hex(16),
            team_id=caller.team_id,
            name=name,
            current_version=1,
            metadata=dict(metadata),
            created_at=now,
            updated_at=now,
        )
        sealed = self._sealer.seal(value, made.id, made.current_version)
        async with self._db.transaction() as tx:
            await teams.lock_team(tx, caller.team_id)
            if await store.find(tx, caller.team_id, name=name) is not None:
                raise ConflictError(
                    f"Secret '{name}' already exists; update it, or delete it first"
                )
            if await store.count(tx, caller.team_id) >= MAX_SECRETS:
                raise ConflictError(
                    f"A team may have {MAX_SECRETS} secrets; delete one that is not used",
                    error_code=ErrorCode.SECRETS_FULL,
                )
            await store.insert_secret(tx, made, sealed)
        return made

    async def update(
        self, caller: Caller, selector: str, value: str, metadata: Mapping[str, str] | None
    ) -> Secret:
        """Store a new version; without `metadata` the old one stays."""
        async with self._db.transaction() as tx:
            # Two updates at once must not make the same version.
            await teams.lock_team(tx, caller.team_id)
            secret = await self._find(tx, caller, selector)
            changed = replace(
                secret,
                current_version=secret.current_version + 1,
                metadata=secret.metadata if metadata is None else dict(metadata),
                updated_at=self._clock(),
            )
            sealed = self._sealer.seal(value, changed.id, changed.current_version)
            await store.update_secret(tx, changed, sealed, keep=_KEPT_VERSIONS)
        return changed

    async def get(self, caller: Caller, selector: str) -> Secret:
        async with self._db.reading() as tx:
            return await self._find(tx, caller, selector)

    async def page(
        self, caller: Caller, *, after: tuple[int, str] | None, limit: int
    ) -> list[Secret]:
        async with self._db.reading() as tx:
            return await store.page(tx, caller.team_id, after=after, limit=limit)

    async def delete(self, caller: Caller, selector: str) -> None:
        """All versions of it are gone."""
        async with self._db.transaction() as tx:
            await store.delete_secret(tx, await self._find(tx, caller, selector))

    async def _find(self, tx: Tx, caller: Caller, selector: str) -> Secret:
        if selector.startswith(ID_PREFIX):
            found = await store.find(tx, caller.team_id, secret_id=selector)
        else:
            found = await store.find(tx, caller.team_id, name=selector.lower())
        if found is None:
            raise NotFoundError(f"Secret '{selector[:128]}' not found")
        return found
