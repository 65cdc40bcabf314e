"""Secrets of a team: made, listed, destroyed, and read for what leaves its sandboxes."""

import secrets as random
from collections.abc import Callable, Mapping
from dataclasses import replace

from alcove.control.clock import now_us
from alcove.control.db import Database, Tx
from alcove.control.errors import (
    NO_RETRY,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from alcove.control.secrets import store, use_store
from alcove.control.secrets.sealing import CannotOpenError, Sealer
from alcove.control.secrets.store import Secret
from alcove.control.secrets.use_store import MINUTE_US, Use
from alcove.control.teams import store as teams
from alcove.control.teams.service import Caller
from alcove.wire.errors import ErrorCode
from alcove.wire.ids import TeamId

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

    async def read(
        self, tx: Tx, team_id: TeamId, name: str, *, sandbox_id: str, domain: str
    ) -> str:
        """The value, for a request of the sandbox to the host `domain`; the use is written down.

        The caller's transaction must be committed before the value goes anywhere. Raises
        NotFoundError, UnavailableError.
        """
        # Two uses at once must not both begin the minute.
        await teams.lock_team(tx, team_id)
        secret = await store.find(tx, team_id, name=name.lower())
        if secret is None:
            raise NotFoundError(f"Secret '{name}' not found")
        sealed = await store.find_sealed(tx, secret)
        try:
            value = self._sealer.open(sealed or b"", secret.id, secret.current_version)
        except CannotOpenError as error:
            raise UnavailableError(
                f"Secret '{name}' cannot be opened; give it a new value",
                headers=NO_RETRY,
                detail=str(error),
            ) from error
        now = self._clock()
        use = Use(
            secret_id=secret.id,
            version=secret.current_version,
            sandbox_id=sandbox_id,
            domain=domain,
            minute=now - now % MINUTE_US,
            team_id=team_id,
            name=secret.name,
            count=1,
            last_at=now,
        )
        await use_store.note(tx, use)
        return value

    async def uses(
        self,
        caller: Caller,
        *,
        secret_id: str | None,
        sandbox_id: str | None,
        after: tuple[int, str, int, str, str] | None,
        limit: int,
    ) -> list[Use]:
        async with self._db.reading() as tx:
            return await use_store.page(
                tx,
                caller.team_id,
                secret_id=secret_id,
                sandbox_id=sandbox_id,
                after=after,
                limit=limit,
            )

    async def _find(self, tx: Tx, caller: Caller, selector: str) -> Secret:
        if selector.startswith(ID_PREFIX):
            found = await store.find(tx, caller.team_id, secret_id=selector)
        else:
            found = await store.find(tx, caller.team_id, name=selector.lower())
        if found is None:
            raise NotFoundError(f"Secret '{selector[:128]}' not found")
        return found
