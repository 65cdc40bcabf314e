"""What one sandbox uses now: the kernel's counters, and the processor share since the last look."""

from alcove.node.drivers.driver import Place
from alcove.node.ground import Ground, Size
from alcove.wire.node import SandboxUsage

_SHORTEST_SPAN_S = 0.5
"""Two looks closer together than this share one processor percentage."""


class Meter:
    """Samples one sandbox. Cheap: a few small files of the kernel."""

    def __init__(self, ground: Ground, place: Place, size: Size, started_at: float) -> None:
        self._ground = ground
        self._place = place
        self._size = size
        self._at = started_at
        self._cpu_seconds = 0.0
        self._cpu_pct = 0.0

    def sample(self, now: float) -> SandboxUsage:
        used = self._ground.usage(self._place)
        span_s = now - self._at
        if span_s >= _SHORTEST_SPAN_S:
            self._cpu_pct = round(100 * max(0.0, used.cpu_seconds - self._cpu_seconds) / span_s, 2)
            self._at, self._cpu_seconds = now, used.cpu_seconds
        total = self._size.memory_mib * 2**20
        return SandboxUsage(
            at=now,
            cpu_count=self._size.vcpu_count,
            cpu_used_pct=self._cpu_pct,
            cpu_seconds=used.cpu_seconds,
            # What isolation itself uses comes on top of the guest's memory; a guest has no more.
            mem_used=min(used.memory, total),
            mem_total=total,
            mem_cache=used.memory_cache,
            disk_used=used.disk,
            disk_total=used.disk_total,
        )
