"""What went through the gate: records until the node takes them, counts against budgets.

Bounded however much a guest does: between two visits of the node only so many records of each
sandbox are kept, the rest is counted.
"""

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from alcove.wire.egress import EgressPolicy

_RECORDS = 20_000
_RECORDS_OF_ONE = 200
"""Between two visits, which are a second apart."""
_OWNERS = 4096
_TEXT_MAX = 253


@dataclass(slots=True)
class Used:
    """What one sandbox used, over all its lives as far as the node has told."""

    requests: int = 0
    sent: int = 0
    received: int = 0
    noted: int = 0
    left_out: int = 0
    """Since the node's last visit: records that are kept, and that are not."""


@dataclass(slots=True)
class Ledger:
    _used: dict[str, Used] = field(default_factory=dict)
    _records: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_RECORDS))

    def of(self, owner: str) -> Used:
        used = self._used.pop(owner, None) or Used()
        self._used[owner] = used  # the last one used is the last one to be forgotten
        while len(self._used) > _OWNERS:
            del self._used[next(iter(self._used))]
        return used

    def start_from(self, owner: str, requests: int, sent: int, received: int) -> None:
        """What the node knows the sandbox to have used, if that is more than is known here."""
        used = self.of(owner)
        used.requests = max(used.requests, requests)
        used.sent = max(used.sent, sent)
        used.received = max(used.received, received)

    def spent(self, owner: str, policy: EgressPolicy, *, new: bool) -> str:
        """Which budget is used up, in words for whoever is refused; empty: none.

        `new`: for a request that is to be made; those under way are not ended by their number.
        """
        used = self.of(owner)
        if new and policy.max_requests and used.requests >= policy.max_requests:
            return f"the sandbox has made its {policy.max_requests} requests to the outside"
        if policy.max_bytes and used.sent + used.received >= policy.max_bytes:
            return f"the sandbox has exchanged its {policy.max_bytes} bytes with the outside"
        return ""

    def charge(self, owner: str, sent: int, received: int) -> None:
        used = self.of(owner)
        used.sent += sent
        used.received += received

    def note(self, owner: str, **record: Any) -> None:
        """Keep a record for the node."""
        used = self.of(owner)
        if used.noted >= _RECORDS_OF_ONE or len(self._records) >= _RECORDS:
            used.left_out += 1
            return
        used.noted += 1
        bounded = {
            name: value[:_TEXT_MAX] if isinstance(value, str) else value
            for name, value in record.items()
            if value not in {None, ""}
        }
        self._records.append({"owner": owner, "at": round(time.time(), 3)} | bounded)

    def drain(self) -> dict[str, Any]:
        """Everything since the last time: records, and the counts of those that did anything."""
        records = list(self._records)
        self._records.clear()
        totals = {}
        for owner, used in self._used.items():
            totals[owner] = [used.requests, used.sent, used.received, used.left_out]
            used.noted = used.left_out = 0
        return {"records": records, "totals": totals}
