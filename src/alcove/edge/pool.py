"""Idle tunnels, kept for the next request to the same port of the same life of a sandbox.

A key names sandbox, generation and port, so a tunnel never serves another sandbox. The oldest idle
tunnel goes first when there are too many.
"""

import time
from collections import OrderedDict
from typing import NamedTuple

from alcove.edge.tunnel import Tunnel
from alcove.wire.ids import SandboxId

MAX_IDLE = 2048
MAX_IDLE_PER_PORT = 32


class Key(NamedTuple):
    sandbox_id: SandboxId | None
    """None: control."""
    generation: int
    port: int


class Pool:
    def __init__(self) -> None:
        self._idle: dict[Key, list[Tunnel]] = {}
        self._oldest: OrderedDict[Tunnel, tuple[Key, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._oldest)

    def take(self, key: Key, max_idle_s: float) -> Tunnel | None:
        """The tunnel that was used last, unless it was idle for longer than `max_idle_s`."""
        tunnels = self._idle.get(key)
        if not tunnels or tunnels[-1].idle_since < time.monotonic() - max_idle_s:
            return None
        tunnel = tunnels[-1]
        self._forget(tunnel)
        tunnel.on_idle_end = None
        return tunnel

    def give(self, key: Key, tunnel: Tunnel, keep_s: float) -> None:
        """Keep a tunnel whose exchange ended cleanly, for at most `keep_s` seconds."""
        tunnels = self._idle.setdefault(key, [])
        tunnels.append(tunnel)
        tunnel.release(self._forget)
        self._oldest[tunnel] = (key, tunnel.idle_since + keep_s)
        if len(tunnels) > MAX_IDLE_PER_PORT:
            self._end(tunnels[0])
        if len(self._oldest) > MAX_IDLE:
            self._end(next(iter(self._oldest)))

    def sweep(self, now: float) -> None:
        """Close what was idle for too long."""
        for tunnel in [each for each, (_, until) in self._oldest.items() if until < now]:
            self._end(tunnel)

    def close(self) -> None:
        for tunnel in list(self._oldest):
            self._end(tunnel)

    def _end(self, tunnel: Tunnel) -> None:
        self._forget(tunnel)
        tunnel.close()

    def _forget(self, tunnel: Tunnel) -> None:
        key, _ = self._oldest.pop(tunnel)
        tunnels = self._idle[key]
        tunnels.remove(tunnel)
        if not tunnels:
            del self._idle[key]
