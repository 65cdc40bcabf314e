"""Makes the templates that ship with Alcove exist and stay usable: one idempotent step.

no build ──▶ WAITING ──▶ BUILDING ──▶ READY ──lost, or the driver changed──▶ ERROR, new build
                             │          └──agent changed──▶ serves until its successor is ready
                             └──────▶ ERROR ──after a growing pause──▶ new build
"""

from collections.abc import Callable

import structlog

from alcove.control.clock import now_us
from alcove.control.db import Database
from alcove.control.nodes.client import NodeError
from alcove.control.nodes.service import Node, Nodes
from alcove.control.templates import store
from alcove.control.templates.attempts import next_attempt
from alcove.control.templates.build_logs import BuildLogs
from alcove.control.templates.store import DEFAULT_TAG, LATEST_BUILDS, Build, Template
from alcove.wire.ids import NodeId, new_build_id, new_template_id
from alcove.wire.node import ImageReport, ImageSpec, RecipeReport
from alcove.wire.states import BuildState

_log = structlog.get_logger()

OTHER_DRIVER = (
    "it was made with another version of the node's driver and cannot be started any more"
)


class TemplateReconciler:
    def __init__(
        self, db: Database, nodes: Nodes, logs: BuildLogs, clock: Callable[[], int] = now_us
    ) -> None:
        self._db = db
        self._nodes = nodes
        self._logs = logs
        self._clock = clock

    async def step(self) -> None:
        for node in self._nodes.all():
            if node.report is None or node.problem:
                continue
            for recipe in node.report.recipes:
                template, builds = await self._ensure_template(node.node_id, recipe)
                stale = bool(builds) and await self._follow(node, template, builds[0])
                builds = await self._builds(template)
                if stale or self._needs_build(builds):
                    await self._begin_build(node, recipe, template, builds)

    async def _ensure_template(
        self, node_id: NodeId, recipe: RecipeReport
    ) -> tuple[Template, list[Build]]:
        now = self._clock()
        async with self._db.transaction() as tx:
            template = await store.find_by_recipe(tx, recipe.name)
            if template is None:
                template = Template(new_template_id(), None, recipe.name, True, now, now, None, 0)
                await store.insert_template(tx, template, "", ())
                _log.info(
                    "template.created", template_id=template.id, recipe=recipe.name, on=node_id
                )
            # Each time: another version of the recipe may have other names.
            await store.set_shipped_aliases(tx, template.id, recipe.aliases)
            return template, await store.builds_of(tx, template.id, limit=1)

    async def _builds(self, template: Template) -> list[Build]:
        async with self._db.reading() as tx:
            return await store.builds_of(tx, template.id, limit=LATEST_BUILDS)

    def _needs_build(self, builds: list[Build]) -> bool:
        moment = next_attempt(builds)
        return moment is not None and self._clock() >= moment

    async def _begin_build(
        self, node: Node, recipe: RecipeReport, template: Template, builds: list[Build]
    ) -> None:
        now = self._clock()
        # A clock that was set back must not make the new build look older than the last one.
        created = max(now, builds[0].created_at + 1) if builds else now
        build = Build(
            id=new_build_id(),
            template_id=template.id,
            node_id=node.node_id,
            state=BuildState.WAITING,
            vcpu_count=recipe.vcpu_count,
            memory_mib=recipe.memory_mib,
            disk_mib=recipe.disk_mib,
            envd_version="",
            reason="",
            created_at=created,
            updated_at=now,
            ready_at=None,
            finished_at=None,
        )
        async with self._db.transaction() as tx:
            await store.insert_build(tx, build)
        _log.info("build.created", build_id=build.id, template_id=template.id)
        await self._follow(node, template, build)

    async def _follow(self, node: Node, template: Template, build: Build) -> bool:
        """Compare one build with what the machine has, and write down or begin what is missing.

        True when the build is ready and out of date.
        """
        if build.state is BuildState.ERROR:
            return False
        try:
            image = await node.client.image(build.id)
            if image is None and build.state is not BuildState.READY:
                image = await node.client.build(_spec(template, build))
            if build.state is not BuildState.READY:
                await self._logs.gather(build)
        except NodeError as error:
            _log.warning("build.unknown", build_id=build.id, why=str(error))
            return False
        if image is None:
            await self._change(build, BuildState.ERROR, "the image is no longer on the node")
        elif image.state is BuildState.READY and not image.restorable:
            await self._change(build, BuildState.ERROR, OTHER_DRIVER)
            return False
        elif image.state is BuildState.READY and build.state is not BuildState.READY:
            await self._finish(build, image)
        elif image.state is not build.state:
            await self._change(build, image.state, image.reason)
        return image is not None and image.stale

    async def _finish(self, build: Build, image: ImageReport) -> None:
        now = self._clock()
        async with self._db.transaction() as tx:
            if not await store.finish_build(tx, build, image, at=now):
                return
            await store.set_tag(tx, build.template_id, DEFAULT_TAG, build.id, now)
        _log.info("build.finished", build_id=build.id, template_id=build.template_id)

    async def _change(self, build: Build, state: BuildState, reason: str) -> None:
        async with self._db.transaction() as tx:
            if not await store.change_state(
                tx, build, state, at=self._clock(), reason=reason[:2000]
            ):
                return
            if state is BuildState.ERROR:
                await store.drop_tags_of(tx, build.id)
        _log.info("build.changed", build_id=build.id, state=state.value, why=reason)


def _spec(template: Template, build: Build) -> ImageSpec:
    assert template.recipe is not None
    return ImageSpec(
        build_id=build.id,
        template_id=template.id,
        recipe=template.recipe,
        vcpu_count=build.vcpu_count,
        memory_mib=build.memory_mib,
        disk_mib=build.disk_mib,
    )
