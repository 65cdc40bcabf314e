"""The SQL of the usage ledger: opened and closed inside the transaction that changes the state."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import case, func, insert, select, tuple_, update

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


async def count_open(tx: Tx) -> int:
    counted = select(func.count()).select_from(usage_entries)
    found: int = (await tx.execute(counted.where(usage_entries.c.closed_at.is_(None)))).scalar_one()
    return found
