"""What a guest does is recorded in bounded memory and on bounded disk."""

import asyncio
from pathlib import Path
from typing import Any

from alcove.node.egress_log import EgressLogs
from alcove.node.gate.ledger import Ledger
from alcove.node.records import Records
from alcove.wire.egress import EgressPolicy
from alcove.wire.ids import SandboxId

ONE = SandboxId("iaaaaaaaaaaaaaaaaaaaa")


def test_a_flood_is_counted_and_not_kept() -> None:
    ledger = Ledger()
    for number in range(100_000):
        ledger.note("flood", host=f"{number}.example" * 100, port=1)
    ledger.note("calm", host="calm.example", port=1)
    drained = ledger.drain()
    assert len(drained["records"]) == 201
    assert max(len(record["host"]) for record in drained["records"]) == 253
    assert drained["totals"]["flood"][3] == 100_000 - 200
    assert ledger.drain()["records"] == []
    for number in range(10_000):
        ledger.of(f"sandbox {number}")
    assert len(ledger.drain()["totals"]) <= 4096


def test_budgets_count_on_from_what_the_node_knows() -> None:
    ledger, policy = Ledger(), EgressPolicy(recorded=True, max_requests=10, max_bytes=100)
    assert ledger.spent("one", policy, new=True) == ""
    ledger.start_from("one", 10, 0, 0)
    assert "10 requests" in ledger.spent("one", policy, new=True)
    assert ledger.spent("one", policy, new=False) == ""
    ledger.charge("other", 60, 40)
    assert "100 bytes" in ledger.spent("other", policy, new=False)
    assert ledger.spent("other", EgressPolicy(), new=True) == ""


def take(logs: EgressLogs, records: list[dict[str, Any]], totals: list[int]) -> None:
    async def drain() -> dict[str, Any]:
        return {"records": [{"owner": ONE} | one for one in records], "totals": {ONE: totals}}

    asyncio.run(logs.take(drain))


def test_a_log_is_bounded_and_outlives_the_node(tmp_path: Path) -> None:
    records = Records(tmp_path)
    directory = records.directory_of(ONE)
    directory.mkdir()
    logs = EgressLogs(records)
    for turn in range(30):
        host = "a.example" if turn % 2 else "b.example"
        many = [{"at": 1.0, "host": host, "port": 443, "sent": 1, "received": 2}] * 200
        take(logs, [dict(one) for one in many], [turn * 200, turn, turn * 2, 1])
    again = EgressLogs(records)
    page = again.page(ONE, 0, 10_000)
    assert len(page.records) <= 2000
    assert page.records[-1]["sequence"] == 6000
    assert page.sums["seen"] == {"a.example": 3000, "b.example": 3000}
    assert (page.sums["left_out"], again.used(ONE)) == (30, (5800, 29, 58))
    assert [one["sequence"] for one in again.page(ONE, 5998, 10).records] == [5999, 6000]
    assert sum(path.stat().st_size for path in directory.iterdir()) < 1_000_000
    # A gate that starts anew counts from less: what was used stays used.
    take(again, [], [1, 1, 1, 0])
    assert again.used(ONE) == (5800, 29, 58)


def test_destinations_are_remembered_up_to_a_number(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.directory_of(ONE).mkdir()
    logs = EgressLogs(records)
    take(logs, [{"at": 1.0, "host": f"{n}.example", "port": 1} for n in range(700)], [0, 0, 0, 0])
    sums = logs.page(ONE, 0, 1).sums
    assert (len(sums["seen"]), sums["seen_left_out"]) == (500, True)


def test_a_sandbox_that_is_forgotten_leaves_nothing(tmp_path: Path) -> None:
    logs = EgressLogs(Records(tmp_path))
    take(logs, [{"at": 1.0, "host": "a.example", "port": 1}], [1, 1, 1, 0])
    assert list(tmp_path.iterdir()) == []
