"""The SQL of teams and API keys."""

from dataclasses import dataclass

from sqlalchemy import bindparam, delete, func, insert, select, update

from alcove.control.db import Tx
from alcove.control.teams.tables import api_keys, teams
from alcove.wire.ids import TeamId


@dataclass(frozen=True, slots=True)
class Team:
    id: TeamId
    slug: str
    name: str
    concurrent_sandboxes: int | None
    created_at: int


@dataclass(frozen=True, slots=True)
class ApiKey:
    id: str
    team_id: TeamId
    name: str
    masked_prefix: str
    masked_suffix: str
    created_at: int
    last_used_at: int | None


_KEY_COLUMNS = [column for column in api_keys.c if column.name != "key_hash"]


_FIND_BY_KEY = (
    select(api_keys.c.id, *teams.c)
    .join_from(api_keys, teams, teams.c.id == api_keys.c.team_id)
    .where(api_keys.c.key_hash == bindparam("hash"))
)
"""Built once: every request runs it."""


_LOCK = select(teams.c.id).where(teams.c.id == bindparam("team")).with_for_update()


async def insert_team(tx: Tx, team: Team) -> None:
    await tx.execute(
        insert(teams).values(
            id=team.id,
            slug=team.slug,
            name=team.name,
            concurrent_sandboxes=team.concurrent_sandboxes,
            created_at=team.created_at,
        )
    )


async def find_team_by_slug(tx: Tx, slug: str) -> Team | None:
    row = (await tx.execute(select(teams).where(teams.c.slug == slug))).one_or_none()
    return None if row is None else Team(*row)


async def find_team(tx: Tx, team_id: TeamId) -> Team | None:
    row = (await tx.execute(select(teams).where(teams.c.id == team_id))).one_or_none()
    return None if row is None else Team(*row)


async def lock_team(tx: Tx, team_id: TeamId) -> None:
    """Let one transaction at a time count what the team has (SQLite has one writer anyway)."""
    await tx.execute(_LOCK, {"team": team_id})


async def find_by_key(tx: Tx, key_hash: str) -> tuple[str, Team] | None:
    """The key's id and its team."""
    row = (await tx.execute(_FIND_BY_KEY, {"hash": key_hash})).one_or_none()
    return None if row is None else (row[0], Team(*row[1:]))


async def insert_key(tx: Tx, key: ApiKey, key_hash: str) -> None:
    await tx.execute(
        insert(api_keys).values(
            id=key.id,
            team_id=key.team_id,
            name=key.name,
            key_hash=key_hash,
            masked_prefix=key.masked_prefix,
            masked_suffix=key.masked_suffix,
            created_at=key.created_at,
        )
    )


async def list_keys(tx: Tx, team_id: TeamId) -> list[ApiKey]:
    found = select(*_KEY_COLUMNS).where(api_keys.c.team_id == team_id)
    rows = await tx.execute(found.order_by(api_keys.c.created_at, api_keys.c.id))
    return [ApiKey(*row) for row in rows]


async def count_keys(tx: Tx, team_id: TeamId) -> int:
    counted = select(func.count()).select_from(api_keys).where(api_keys.c.team_id == team_id)
    found: int = (await tx.execute(counted)).scalar_one()
    return found


async def rename_key(tx: Tx, team_id: TeamId, key_id: str, name: str) -> bool:
    changed = await tx.execute(
        update(api_keys)
        .where(api_keys.c.id == key_id, api_keys.c.team_id == team_id)
        .values(name=name)
    )
    return changed.rowcount == 1


async def delete_key(tx: Tx, team_id: TeamId, key_id: str) -> bool:
    deleted = await tx.execute(
        delete(api_keys).where(api_keys.c.id == key_id, api_keys.c.team_id == team_id)
    )
    return deleted.rowcount == 1


async def touch_keys(tx: Tx, used: dict[str, int]) -> None:
    """Note when keys were last used."""
    for key_id, at in used.items():
        await tx.execute(update(api_keys).where(api_keys.c.id == key_id).values(last_used_at=at))
