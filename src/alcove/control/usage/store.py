"""The SQL of the usage ledger: opened and closed inside the transaction that changes the state."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import case, func, insert, select, tuple_, update

from alcove.control.db import Tx
from alcove.control.usage.tables import storage_entries, usage_entries, volume_entries
from alcove.wire.ids import SandboxId, SnapshotId, TeamId, TemplateId, VolumeId


@dataclass(frozen=True, slots=True)
class Entry:
    team_id: TeamId
    sandbox_id: SandboxId
    generation: int
    template_id: TemplateId
    vcpu_count: int
    memory_mib: int
    disk_mib: int
    opened_at: int


@dataclass(frozen=True, slots=True)
class StorageEntry:
    """A snapshot that is kept."""

    snapshot_id: SnapshotId
    team_id: TeamId
    sandbox_id: SandboxId
    size_bytes: int
    opened_at: int


_INSERT = insert(usage_entries)


async def open_entry(tx: Tx, entry: Entry) -> None:
    await tx.execute(_INSERT, asdict(entry))


async def close_entries(tx: Tx, lives: Sequence[tuple[SandboxId, int]], at: int) -> None:
    """Close the entries of lives (sandbox id and generation) that are open."""
    await tx.execute(
        update(usage_entries)
        .where(
            tuple_(usage_entries.c.sandbox_id, usage_entries.c.generation).in_(lives),
            usage_entries.c.closed_at.is_(None),
        )
        # A clock set back between open and close must not make a negative bill.
        .values(
            closed_at=case((usage_entries.c.opened_at > at, usage_entries.c.opened_at), else_=at)
        )
    )


async def reopen_entry(tx: Tx, sandbox_id: SandboxId, generation: int) -> None:
    """The life was closed for what did not come about: it never ended."""
    await tx.execute(
        update(usage_entries)
        .where(usage_entries.c.sandbox_id == sandbox_id, usage_entries.c.generation == generation)
        .values(closed_at=None)
    )


async def open_storage(tx: Tx, entry: StorageEntry) -> None:
    await tx.execute(insert(storage_entries).values(**asdict(entry)))


async def close_storage(tx: Tx, snapshot_ids: Sequence[SnapshotId], at: int) -> None:
    """Close the entries of snapshots that are kept no longer; those closed before stay."""
    await tx.execute(
        update(storage_entries)
        .where(
            storage_entries.c.snapshot_id.in_(snapshot_ids),
            storage_entries.c.closed_at.is_(None),
        )
        .values(
            closed_at=case(
                (storage_entries.c.opened_at > at, storage_entries.c.opened_at), else_=at
            )
        )
    )


async def open_volume(tx: Tx, team_id: TeamId, volume_id: VolumeId, size_mib: int, at: int) -> None:
    values = {"team_id": team_id, "volume_id": volume_id, "size_mib": size_mib, "opened_at": at}
    await tx.execute(insert(volume_entries).values(**values))


async def close_volume(tx: Tx, volume_id: VolumeId, at: int) -> None:
    """Close the entry of a volume that is deleted, or of another size from now on."""
    entries = volume_entries.c
    await tx.execute(
        update(volume_entries)
        .where(entries.volume_id == volume_id, entries.closed_at.is_(None))
        .values(closed_at=case((entries.opened_at > at, entries.opened_at), else_=at))
    )


async def count_open(tx: Tx) -> int:
    counted = select(func.count()).select_from(usage_entries)
    found: int = (await tx.execute(counted.where(usage_entries.c.closed_at.is_(None)))).scalar_one()
    return found
