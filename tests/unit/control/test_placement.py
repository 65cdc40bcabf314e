"""Choosing a machine."""

from dataclasses import replace

from alcove.control.nodes.placement import Candidate, choose
from alcove.wire.ids import NodeId
from alcove.wire.node import NodeReport

REPORT = NodeReport(
    node_id=NodeId("n"),
    version="0",
    driver="fake",
    isolation="none",
    capabilities=[],
    recipes=[],
    cpu_count=2,
    memory_mib=8192,
    memory_free_mib=4096,
    disk_free_mib=4096,
    sandboxes=0,
    slots_ready=0,
    ready=True,
)


def candidate(name: str, **changes: object) -> Candidate:
    return Candidate(NodeId(name), replace(REPORT, **changes))


def test_the_machine_with_most_free_memory_gets_it() -> None:
    machines = [candidate("a"), candidate("b", memory_free_mib=5000), candidate("c")]
    assert choose(machines, 1024, 10240) == "b"
    assert choose(machines[::-1], 1024, 10240) == "b"


def test_machines_that_cannot_are_passed_over() -> None:
    assert choose([], 1, 1) is None
    assert choose([candidate("a", ready=False)], 1, 1) is None
    assert choose([candidate("a", memory_free_mib=1023)], 1024, 1) is None
    assert choose([candidate("a", disk_free_mib=511)], 1024, 10240) is None
    assert choose([candidate("a", disk_free_mib=100)], 1024, 100) == "a"
