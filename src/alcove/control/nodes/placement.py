"""Which machine gets a sandbox: a pure choice among what the machines report."""

from collections.abc import Sequence
from dataclasses import dataclass

from alcove.wire.ids import NodeId
from alcove.wire.node import NodeReport


@dataclass(frozen=True, slots=True)
class Candidate:
    node_id: NodeId
    report: NodeReport


def choose(candidates: Sequence[Candidate], memory_mib: int, disk_mib: int) -> NodeId | None:
    """The machine with the most free memory that has room, or None.

    Disk is written lazily, so a sandbox needs only a part of its limit to be free at the start.
    """
    fitting = [
        candidate
        for candidate in candidates
        if candidate.report.ready
        and candidate.report.memory_free_mib >= memory_mib
        and candidate.report.disk_free_mib >= min(disk_mib, _DISK_AT_START_MIB)
    ]
    if not fitting:
        return None
    return max(fitting, key=lambda c: (c.report.memory_free_mib, c.node_id)).node_id


_DISK_AT_START_MIB = 512
