"""The SQL of volumes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Row, delete, func, insert, select, update

from alcove.control.db import Tx
from alcove.control.volumes.states import VolumeState
from alcove.control.volumes.tables import volumes
from alcove.wire.ids import NodeId, TeamId, VolumeId


@dataclass(frozen=True, slots=True)
class Volume:
    id: VolumeId
    team_id: TeamId
    name: str
    state: VolumeState
    node_id: NodeId
    size_mib: int
    """The quota of bytes."""
    inodes: int
    """The quota of files and directories."""
    created_at: int


async def insert_volume(tx: Tx, volume: Volume) -> None:
    await tx.execute(insert(volumes).values(**asdict(volume) | {"state": volume.state.value}))


async def find(tx: Tx, team_id: TeamId, volume_id: VolumeId) -> Volume | None:
    """One of the team's volumes that can be used."""
    found = select(volumes).where(
        volumes.c.team_id == team_id,
        volumes.c.id == volume_id,
        volumes.c.state == VolumeState.READY.value,
    )
    row = (await tx.execute(found)).one_or_none()
    return None if row is None else _read(row)


async def find_any(tx: Tx, volume_id: VolumeId) -> Volume | None:
    row = (await tx.execute(select(volumes).where(volumes.c.id == volume_id))).one_or_none()
    return None if row is None else _read(row)


async def has_name(tx: Tx, team_id: TeamId, name: str) -> bool:
    """Whether a volume of the team has, or will have, this name."""
    found = select(volumes.c.id).where(volumes.c.team_id == team_id, volumes.c.name == name)
    return (await tx.execute(found)).first() is not None


async def named(tx: Tx, team_id: TeamId, names: Sequence[str]) -> list[Volume]:
    """Those of the team's volumes that have one of the names."""
    found = select(volumes).where(
        volumes.c.team_id == team_id,
        volumes.c.name.in_(list(names)),
        volumes.c.state == VolumeState.READY.value,
    )
    return [_read(row) for row in (await tx.execute(found)).all()]


async def of_team(tx: Tx, team_id: TeamId) -> list[Volume]:
    """Newest first."""
    found = (
        select(volumes)
        .where(volumes.c.team_id == team_id, volumes.c.state == VolumeState.READY.value)
        .order_by(volumes.c.created_at.desc(), volumes.c.id)
    )
    return [_read(row) for row in (await tx.execute(found)).all()]


async def count(tx: Tx, team_id: TeamId) -> int:
    """With those that are being made and deleted."""
    counted = select(func.count()).select_from(volumes).where(volumes.c.team_id == team_id)
    found: int = (await tx.execute(counted)).scalar_one()
    return found


async def unfinished(tx: Tx, *, made_before: int, limit: int) -> list[Volume]:
    """What is being deleted, and what has been in the making since before that moment."""
    found = (
        select(volumes)
        .where(
            (volumes.c.state == VolumeState.DELETING.value)
            | ((volumes.c.state == VolumeState.MAKING.value) & (volumes.c.created_at < made_before))
        )
        .order_by(volumes.c.created_at)
        .limit(limit)
    )
    return [_read(row) for row in (await tx.execute(found)).all()]


async def mark_ready(tx: Tx, volume_id: VolumeId) -> bool:
    """False if it was given up meanwhile."""
    changed = await tx.execute(
        update(volumes)
        .where(volumes.c.id == volume_id, volumes.c.state == VolumeState.MAKING.value)
        .values(state=VolumeState.READY.value)
    )
    return bool(changed.rowcount)


async def mark_deleting(tx: Tx, volume_id: VolumeId) -> None:
    await tx.execute(
        update(volumes)
        .where(volumes.c.id == volume_id)
        .values(state=VolumeState.DELETING.value, name=f"~{volume_id}")
    )


async def resize(tx: Tx, volume_id: VolumeId, size_mib: int, inodes: int) -> None:
    await tx.execute(
        update(volumes).where(volumes.c.id == volume_id).values(size_mib=size_mib, inodes=inodes)
    )


async def forget(tx: Tx, volume_id: VolumeId) -> None:
    await tx.execute(delete(volumes).where(volumes.c.id == volume_id))


def _read(row: Row[Any]) -> Volume:
    values = dict(row._mapping)  # noqa: SLF001 - public API of SQLAlchemy despite its name
    return Volume(**values | {"state": VolumeState(values["state"])})
