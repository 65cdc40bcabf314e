"""From a plan to a root file system: a base, and groups of steps run in sandboxes on top of it.

For each group: is its layer kept? Otherwise a sandbox is booted on an overlay of the base and the
layers so far, runs the steps and ends; what it changed becomes the layer. The root is then put
together of base and layers by links, so files are stored once.
"""

import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alcove.node import overlays
from alcove.node.building.bases import Base
from alcove.node.building.context import Context, Group, groups
from alcove.node.building.layers import Layer, Layers
from alcove.node.building.steps import StepError, Steps
from alcove.node.drivers.driver import Driver, DriverError, Image, Place
from alcove.node.ground import Size
from alcove.node.guest_client import GuestClient, GuestError
from alcove.node.guest_commands import GuestCommands
from alcove.node.origins import Startup
from alcove.node.places import Places
from alcove.node.rootfs import RootfsStore
from alcove.node.trees import TreeError
from alcove.storage import Storage
from alcove.wire.builds import BuildPlan, BuildStep, StepType
from alcove.wire.node import ImageSpec

_HEALTHY_S = 60.0
_COMMAND_S = 60.0
_PROVISION_S = 900.0
_SHOWN_ARGS, _SHOWN_LINES = 400, 20

Say = Callable[[str, str, str], None]
"""Takes the step ("base", a number), a log level and a line."""


class StepFailedError(Exception):
    """A build failed at a step; the message is for its owner."""

    def __init__(self, step: str, message: str) -> None:
        super().__init__(message)
        self.step = step


@dataclass(frozen=True, slots=True)
class Tools:
    """What steps are run with."""

    driver: Driver
    places: Places
    rootfs: RootfsStore
    layers: Layers
    storage: Storage
    extra_ca_pem: str = ""


@dataclass(frozen=True, slots=True)
class Built:
    rootfs: str
    startup: Startup


class Builder:
    """Carries out one plan."""

    def __init__(
        self, tools: Tools, spec: ImageSpec, plan: BuildPlan, agent: Path, say: Say
    ) -> None:
        self._with = tools
        self._spec = spec
        self._plan = plan
        self._agent = agent
        self._say = say

    async def make(self, base: Base) -> Built:
        """Raises StepFailedError."""
        text = f"{base.rootfs}:{base.context.digest()}:{base.provision}"
        digest = hashlib.sha256(text.encode()).hexdigest()
        wanted = groups(self._plan.owner, digest, self._plan.steps, force=self._plan.force)
        context, stacked = base.context, list[Layer]()
        with self._with.layers.held() as held:
            if base.provision:
                ready = self._with.layers.find(digest) or await self._provision(digest, base)
                self._with.layers.hold(held, ready)
                stacked.append(ready)
            for group in wanted:
                layer = None if group.forced else self._with.layers.find(group.key)
                if layer is None:
                    layer = await self._run(group, base, context, stacked)
                else:
                    self._announce(group, cached=True)
                self._with.layers.hold(held, layer)
                context = layer.context
                if layer.has_files:
                    stacked.append(layer)
            rootfs = await self._stack(base, stacked)
        return Built(rootfs, self._startup(base.startup, context))

    async def _run(self, group: Group, base: Base, context: Context, stacked: list[Layer]) -> Layer:
        """Run a group in a sandbox of its own and keep what it changed."""

        async def work(commands: GuestCommands) -> Context:
            seen = context
            steps = Steps(commands, self._with.storage, self._plan.owner)
            for number, step in group.steps:
                self._announce(replace(group, steps=((number, step),)), cached=False)
                seen = await self._step(steps, number, step, seen)
            return seen

        return await self._layer(group.key, str(group.steps[0][0]), base, stacked, work)

    async def _provision(self, key: str, base: Base) -> Layer:
        """Make an image of a registry one that sandboxes can be made of."""

        async def work(commands: GuestCommands) -> Context:
            self._say("base", "info", "Preparing the image")
            finished = await commands.run(base.provision, "root", _PROVISION_S)
            for line in finished.output.splitlines()[-_SHOWN_LINES:]:
                self._say("base", "info", line)
            if finished.exit_code:
                raise StepFailedError("base", f"the image cannot be prepared: {finished.output}")
            return base.context

        return await self._layer(key, "base", base, [], work)

    async def _layer(
        self,
        key: str,
        label: str,
        base: Base,
        stacked: list[Layer],
        work: Callable[[GuestCommands], Awaitable[Context]],
    ) -> Layer:
        """Keep what `work` changes in a sandbox; failures are those of the step `label`."""
        size = Size(self._spec.vcpu_count, self._spec.memory_mib, self._spec.disk_mib)
        lowers = [self._with.layers.files(layer) for layer in reversed(stacked)]
        try:
            async with self._with.places.scratch(size) as place:
                root = await overlays.mount(
                    place.directory, place.disk, [*lowers, self._with.rootfs.path(base.rootfs)]
                )
                await self._boot(place, root)
                commands = GuestCommands(self._with.driver, place)
                context = await work(commands)
                await commands.run("sync", "root", _COMMAND_S)
                await self._with.driver.stop(place)
                await overlays.unmount(place.directory)
                upper = overlays.upper(place.disk)
                return await self._with.layers.add(key, context, upper)
        except (TreeError, GuestError, DriverError, overlays.OverlayError) as error:
            raise StepFailedError(label, str(error)) from error

    async def _step(self, steps: Steps, number: int, step: BuildStep, context: Context) -> Context:
        total = len(self._plan.steps)

        def say(level: str, line: str) -> None:
            self._say(str(number), level, f"[builder {number}/{total}] {line}")

        try:
            return await steps.run(step, context, say)
        except StepError as error:
            raise StepFailedError(str(number), str(error)) from error

    async def _boot(self, place: Place, root: Path) -> None:
        image = Image(
            build_id=self._spec.build_id,
            rootfs=root,
            agent=self._agent,
            snapshot=None,
            vcpu_count=self._spec.vcpu_count,
            memory_mib=self._spec.memory_mib,
            writable=True,
        )
        await self._with.driver.boot(place, image)
        guest = GuestClient(self._with.driver, place, "")
        await guest.healthy(_HEALTHY_S)
        identity: dict[str, Any] = {"hostname": "build", "timestamp": time.time()}
        await guest.init(identity | {"caBundle": self._with.extra_ca_pem}, _HEALTHY_S)

    async def _stack(self, base: Base, layers: list[Layer]) -> str:
        if not layers:
            return base.rootfs
        text = json.dumps([base.rootfs, [layer.id for layer in layers]])
        digest = hashlib.sha256(text.encode()).hexdigest()[:20]
        await self._with.rootfs.stack(
            digest,
            base.rootfs,
            [self._with.layers.files(layer) for layer in layers],
            sum(layer.size_bytes for layer in layers),
        )
        return digest

    def _startup(self, inherited: Startup, context: Context) -> Startup:
        given = inherited.with_commands(self._plan.start_command, self._plan.ready_command)
        return replace(given, user=context.user, workdir=context.workdir, env=dict(context.env))

    def _announce(self, group: Group, *, cached: bool) -> None:
        total, mark = len(self._plan.steps), "CACHED " if cached else ""
        for number, step in group.steps:
            text = " ".join(step.args)[:_SHOWN_ARGS]
            digest = f" [{step.files_hash[:12]}]" if step.type is StepType.COPY else ""
            line = f"{mark}[builder {number}/{total}] {step.type.value} {text}{digest}"
            self._say(str(number), "info", line)
