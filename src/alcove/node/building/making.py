"""The root file system of a team's build: its base found, kept while it is used, built upon."""

from collections import Counter
from pathlib import Path

from alcove.node.building.builder import Builder, Built, Say, Tools, base_of_build
from alcove.node.origins import Origin
from alcove.wire.builds import BuildPlan
from alcove.wire.node import ImageSpec


class Maker:
    def __init__(self, tools: Tools) -> None:
        self._with = tools
        self._used: Counter[str] = Counter()

    def in_use(self) -> set[str]:
        """Root file systems that builds under way stand on."""
        return set(+self._used)

    async def make(
        self, spec: ImageSpec, plan: BuildPlan, origin: Origin, agent: Path, say: Say
    ) -> Built:
        """Raises StepFailedError."""
        base = base_of_build(origin)
        say("base", "info", f"[base] FROM {plan.from_build}")
        self._used[base.rootfs] += 1
        try:
            return await Builder(self._with, spec, plan, agent, say).make(base)
        finally:
            self._used[base.rootfs] -= 1
