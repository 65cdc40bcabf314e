"""The policies that the gate judges by: <directory>/<slot>.json, written by the node.

The node replaces a file whole and then says so (control socket); a connection looks all the same,
so that nothing is missed if it could not. No file, or one that cannot be read: nothing is allowed.
"""

import json
import os
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from alcove.wire.egress import NOTHING, EgressPolicy

_FIRST_SLOT_ADDRESS = 2


@dataclass(frozen=True, slots=True)
class Ruled:
    """Whose slot it is, what that one may reach, and what it used when this was written."""

    policy: EgressPolicy
    owner: str = ""
    used: tuple[int, int, int] = (0, 0, 0)
    """Requests, bytes sent, bytes received."""


def _ruled(data: dict[str, Any]) -> Ruled:
    requests, sent, received = data.get("used") or (0, 0, 0)
    used = int(requests), int(sent), int(received)
    return Ruled(EgressPolicy.from_json(data), str(data.get("owner", "")), used)


class Policies:
    def __init__(self, directory: Path, slot_network: IPv4Network) -> None:
        self._directory = directory
        self._network = slot_network
        self._known: dict[int, tuple[tuple[int, int], Ruled]] = {}

    def slot_of(self, address: str) -> int | None:
        """Whose address it is; None: no sandbox's."""
        found = IPv4Address(address)
        if found not in self._network:
            return None
        slot = int(found) - int(self._network[_FIRST_SLOT_ADDRESS])
        return slot if slot >= 0 else None

    def of(self, slot: int) -> EgressPolicy:
        return self.ruled(slot).policy

    def ruled(self, slot: int) -> "Ruled":
        path = policy_path(self._directory, slot)
        try:
            status = path.stat()
            version = (status.st_ino, status.st_mtime_ns)
            known = self._known.get(slot)
            if known is not None and known[0] == version:
                return known[1]
            ruled = _ruled(json.loads(path.read_bytes()))
        except (OSError, ValueError, AttributeError, TypeError):
            self._known.pop(slot, None)
            return Ruled(NOTHING)
        self._known[slot] = (version, ruled)
        return ruled


def policy_path(directory: Path, slot: int) -> Path:
    return directory / f"{slot}.json"


def write_policy(directory: Path, slot: int, ruled: Ruled) -> None:
    """Replace a slot's policy in one step; the gate may read it, others may not."""
    draft = directory / f".{slot}.tmp"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        data = ruled.policy.to_json() | {"owner": ruled.owner, "used": ruled.used}
        os.write(descriptor, json.dumps(data).encode())
    finally:
        os.close(descriptor)
    draft.replace(policy_path(directory, slot))
