"""What database, node and disk must say of a soak: nothing lost, leaked or billed twice."""

import itertools
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager

import httpx

from stack import Stack


@contextmanager
def reading(stack: Stack) -> Iterator[sqlite3.Connection]:
    path = f"file:{stack.data_dir / 'control.db'}?mode=ro"
    with closing(sqlite3.connect(path, uri=True, timeout=20)) as database:
        database.row_factory = sqlite3.Row
        yield database


def snapshot_of(stack: Stack, sandbox_id: str) -> str:
    """The snapshot a paused sandbox would come back from."""
    with reading(stack) as database:
        query = "SELECT snapshot_id FROM sandboxes WHERE id = ? AND state = 'paused'"
        row = database.execute(query, (sandbox_id,)).fetchone()
    return str(row["snapshot_id"])


def wrong_bills(stack: Stack) -> list[str]:
    """Lives that were billed twice or at the same time as another life of the same sandbox."""
    with reading(stack) as database:
        rows = database.execute(
            "SELECT sandbox_id, generation, opened_at, closed_at FROM usage_entries"
            " ORDER BY sandbox_id, generation"
        ).fetchall()
        storage = database.execute("SELECT * FROM storage_entries").fetchall()
    wrong = []
    lives = defaultdict(list)
    for row in rows:
        lives[row["sandbox_id"]].append(row)
    for sandbox_id, entries in lives.items():
        generations = [entry["generation"] for entry in entries]
        if len(set(generations)) != len(generations):
            wrong.append(f"{sandbox_id}: generations {generations}")
        for earlier, later in itertools.pairwise(entries):
            if earlier["closed_at"] is None or earlier["closed_at"] > later["opened_at"]:
                wrong.append(f"{sandbox_id}: life {earlier['generation']} overlaps the next")
    closed = [entry for entry in (*rows, *storage) if entry["closed_at"] is not None]
    wrong += [
        f"negative: {dict(entry)}" for entry in closed if entry["closed_at"] < entry["opened_at"]
    ]
    return wrong


def open_bills(stack: Stack) -> dict[str, int]:
    """Entries still open."""
    with reading(stack) as database:
        return {
            table: database.execute(
                f"SELECT count(*) FROM {table} WHERE closed_at IS NULL"
            ).fetchone()[0]
            for table in ("usage_entries", "storage_entries")
        }


def snapshots_in_database(stack: Stack) -> dict[str, str]:
    """Snapshot id to state."""
    with reading(stack) as database:
        return {row["id"]: row["state"] for row in database.execute("SELECT * FROM snapshots")}


def snapshots_on_disk(stack: Stack) -> set[str]:
    folder = stack.data_dir / "snapshots"
    if not folder.is_dir():
        return set()
    return {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}


def snapshots_settled(stack: Stack, timeout_s: float) -> dict[str, object]:
    """Wait until every snapshot on the disk has a row and the reverse; what differs, if it stays.

    A save that was cut short has a row until its deadline is over.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        rows, disk = snapshots_in_database(stack), snapshots_on_disk(stack)
        ready = {one for one, state in rows.items() if state == "ready"}
        differs = {
            "on the disk without a row": sorted(disk - rows.keys()),
            "ready without files": sorted(ready - disk),
        }
        if not any(differs.values()) or time.monotonic() > deadline:
            return {what: names for what, names in differs.items() if names}
        time.sleep(0.5)


def node_sandboxes(stack: Stack, port: int) -> set[str]:
    """Sandboxes that the node runs."""
    answer = httpx.get(
        f"http://127.0.0.1:{port}/v1/sandboxes",
        headers={"Authorization": f"Bearer {stack.cluster_key}"},
        timeout=20,
    )
    reports = answer.raise_for_status().json()["sandboxes"]
    return {one["sandbox_id"] for one in reports if one["state"] != "stopped"}
