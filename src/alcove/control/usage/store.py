"""The SQL of the usage ledger: opened and closed inside the transaction that changes the state."""

from dataclasses import asdict, dataclass

from sqlalchemy import case, func, insert, select, update

from alcove.control.db import Tx
from alcove.control.usage.tables import usage_entries
from alcove.wire.ids import SandboxId, TeamId, TemplateId


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


_INSERT = insert(usage_entries)


async def open_entry(tx: Tx, entry: Entry) -> None:
    await tx.execute(_INSERT, asdict(entry))


async def close_entry(tx: Tx, sandbox_id: SandboxId, generation: int, at: int) -> bool:
    """Close the entry of one life. False when it was closed before (or never opened)."""
    closed = await tx.execute(
        update(usage_entries)
        .where(
            usage_entries.c.sandbox_id == sandbox_id,
            usage_entries.c.generation == generation,
            usage_entries.c.closed_at.is_(None),
        )
        # A clock set back between open and close must not make a negative bill.
        .values(
            closed_at=case((usage_entries.c.opened_at > at, usage_entries.c.opened_at), else_=at)
        )
    )
    return closed.rowcount == 1


async def count_open(tx: Tx) -> int:
    counted = select(func.count()).select_from(usage_entries)
    found: int = (await tx.execute(counted.where(usage_entries.c.closed_at.is_(None)))).scalar_one()
    return found
