"""The SQL of templates and builds."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    and_,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from alcove.control.db import Tx
from alcove.control.templates.tables import (
    template_aliases,
    template_builds,
    template_tags,
    templates,
)
from alcove.wire.ids import BuildId, NodeId, SandboxId, SnapshotId, TeamId, TemplateId
from alcove.wire.node import AGENT_VERSION, ImageReport
from alcove.wire.states import BuildState

DEFAULT_TAG = "default"
TEMPLATE, SNAPSHOT = "template", "snapshot"
"""Kinds of templates: made from a recipe, or a saved state of a sandbox."""
LATEST_BUILDS = 20
"""So many builds tell what became of a template, and when it is tried again."""


@dataclass(frozen=True, slots=True)
class Template:
    id: TemplateId
    team_id: TeamId | None
    recipe: str | None
    public: bool
    created_at: int
    updated_at: int
    last_spawned_at: int | None
    spawn_count: int
    kind: str = TEMPLATE
    origin_sandbox_id: SandboxId | None = None


@dataclass(frozen=True, slots=True)
class Build:
    id: BuildId
    template_id: TemplateId
    node_id: NodeId
    state: BuildState
    vcpu_count: int
    memory_mib: int
    disk_mib: int
    envd_version: str
    reason: str
    created_at: int
    updated_at: int
    ready_at: int | None
    finished_at: int | None
    snapshot_id: SnapshotId | None = None
    failed_step: str = ""


@dataclass(frozen=True, slots=True)
class Named:
    """A template found by a name, with its alias and the build its tag chooses."""

    template: Template
    alias: str | None
    build: Build | None


def _find_named(*, by_id: bool) -> Select[Any]:
    condition: ColumnElement[bool] = templates.c.id.in_(
        select(template_aliases.c.template_id).where(
            template_aliases.c.namespace.in_(bindparam("namespaces", expanding=True)),
            template_aliases.c.alias == bindparam("name"),
        )
    )
    if by_id:
        condition = or_(condition, templates.c.id == bindparam("name"))
    alias = (
        select(func.min(template_aliases.c.alias))
        .where(template_aliases.c.template_id == templates.c.id)
        .scalar_subquery()
    )
    tagged = and_(
        template_tags.c.template_id == templates.c.id,
        template_tags.c.tag == bindparam("wanted_tag"),
    )
    return (
        select(*templates.c, alias, *template_builds.c)
        .select_from(templates)
        .outerjoin(template_tags, tagged)
        .outerjoin(template_builds, template_builds.c.id == template_tags.c.build_id)
        .where(condition)
    )


# Built once: every create runs one of them.
_FIND_BY_NAME = _find_named(by_id=False)
_FIND_BY_NAME_OR_ID = _find_named(by_id=True)


async def insert_template(
    tx: Tx, template: Template, namespace: str, aliases: tuple[str, ...]
) -> None:
    await tx.execute(
        insert(templates).values(
            id=template.id,
            team_id=template.team_id,
            recipe=template.recipe,
            public=template.public,
            created_at=template.created_at,
            updated_at=template.updated_at,
            spawn_count=template.spawn_count,
            kind=template.kind,
            origin_sandbox_id=template.origin_sandbox_id,
        )
    )
    for alias in aliases:
        await tx.execute(
            insert(template_aliases).values(
                namespace=namespace, alias=alias, template_id=template.id
            )
        )


async def set_shipped_aliases(tx: Tx, template_id: TemplateId, aliases: list[str]) -> None:
    """Give a shipped template these names and no others; a name another one has goes over."""
    found = select(template_aliases).where(template_aliases.c.namespace == "")
    taken = {alias: owner for _, alias, owner in await tx.execute(found)}
    own = {alias for alias, owner in taken.items() if owner == template_id}
    wrong = own ^ set(aliases)
    if not wrong:
        return
    await tx.execute(
        delete(template_aliases).where(
            template_aliases.c.namespace == "", template_aliases.c.alias.in_(wrong)
        )
    )
    for alias in sorted(set(aliases) - own):
        await tx.execute(
            insert(template_aliases).values(namespace="", alias=alias, template_id=template_id)
        )


_NOTE_SPAWN = (
    update(templates)
    .where(templates.c.id == bindparam("template"))
    .values(spawn_count=templates.c.spawn_count + 1, last_spawned_at=bindparam("at"))
)


async def find_named(
    tx: Tx, namespaces: tuple[str, ...], name: str, tag: str, *, by_id: bool
) -> list[Named]:
    """Templates whose alias in one of the namespaces (or whose id) is `name`."""
    statement = _FIND_BY_NAME_OR_ID if by_id else _FIND_BY_NAME
    found = await tx.execute(
        statement, {"namespaces": list(namespaces), "name": name, "wanted_tag": tag}
    )
    split = len(templates.c)
    return [
        Named(Template(*row[:split]), row[split], _build_or_none(tuple(row[split + 1 :])))
        for row in found
    ]


async def find_by_recipe(tx: Tx, recipe: str) -> Template | None:
    row = (await tx.execute(select(templates).where(templates.c.recipe == recipe))).one_or_none()
    return None if row is None else Template(*row)


async def shipped(tx: Tx) -> list[Template]:
    """The templates that ship with Alcove."""
    found = select(templates).where(templates.c.recipe.is_not(None)).order_by(templates.c.recipe)
    return [Template(*row) for row in await tx.execute(found)]


async def has_tag(tx: Tx, template_id: TemplateId, tag: str) -> bool:
    found = select(template_tags.c.tag).where(
        template_tags.c.template_id == template_id, template_tags.c.tag == tag
    )
    return (await tx.execute(found)).one_or_none() is not None


async def find_visible(tx: Tx, team_id: TeamId, template_id: TemplateId) -> Template | None:
    found = _visible(team_id).where(templates.c.id == template_id)
    row = (await tx.execute(found)).one_or_none()
    return None if row is None else Template(*row)


async def page_visible(
    tx: Tx,
    team_id: TeamId,
    *,
    kind: str = TEMPLATE,
    after: tuple[int, str] | None = None,
    offset: int = 0,
    limit: int,
) -> list[Template]:
    """Templates of one kind that a team can use, oldest first."""
    found = _visible(team_id).where(templates.c.kind == kind)
    if after is not None:
        created_at, template_id = after
        found = found.where(
            or_(
                templates.c.created_at > created_at,
                and_(templates.c.created_at == created_at, templates.c.id > template_id),
            )
        )
    ordered = found.order_by(templates.c.created_at, templates.c.id)
    rows = await tx.execute(ordered.limit(limit).offset(offset))
    return [Template(*row) for row in rows]


async def count_visible(tx: Tx, team_id: TeamId, kind: str) -> int:
    found = _visible(team_id).where(templates.c.kind == kind).subquery()
    counted: int = (await tx.execute(select(func.count()).select_from(found))).scalar_one()
    return counted


async def aliases_of(tx: Tx, template_ids: list[TemplateId]) -> dict[TemplateId, list[str]]:
    """Full names ("namespace/alias", or the bare alias) of templates."""
    found = select(template_aliases).where(template_aliases.c.template_id.in_(template_ids))
    names: dict[TemplateId, list[str]] = {}
    for namespace, alias, template_id in await tx.execute(
        found.order_by(template_aliases.c.namespace, template_aliases.c.alias)
    ):
        names.setdefault(template_id, []).append(f"{namespace}/{alias}" if namespace else alias)
    return names


async def note_spawn(tx: Tx, template_id: TemplateId, at: int) -> None:
    await tx.execute(_NOTE_SPAWN, {"template": template_id, "at": at})


async def insert_build(tx: Tx, build: Build) -> None:
    await tx.execute(
        insert(template_builds).values(
            id=build.id,
            template_id=build.template_id,
            node_id=build.node_id,
            state=build.state.value,
            vcpu_count=build.vcpu_count,
            memory_mib=build.memory_mib,
            disk_mib=build.disk_mib,
            envd_version=build.envd_version,
            reason=build.reason,
            created_at=build.created_at,
            updated_at=build.updated_at,
            ready_at=build.ready_at,
            finished_at=build.finished_at,
            snapshot_id=build.snapshot_id,
        )
    )


async def builds_of(tx: Tx, template_id: TemplateId, *, limit: int, offset: int = 0) -> list[Build]:
    """Builds of a template, newest first."""
    found = select(template_builds).where(template_builds.c.template_id == template_id)
    rows = await tx.execute(
        found.order_by(template_builds.c.created_at.desc(), template_builds.c.id)
        .limit(limit)
        .offset(offset)
    )
    return [read_build(tuple(row)) for row in rows]


async def count_builds(tx: Tx, template_id: TemplateId) -> int:
    counted = select(func.count()).select_from(template_builds)
    found: int = (
        await tx.execute(counted.where(template_builds.c.template_id == template_id))
    ).scalar_one()
    return found


async def find_build(tx: Tx, template_id: TemplateId, build_id: BuildId) -> Build | None:
    found = select(template_builds).where(
        template_builds.c.id == build_id, template_builds.c.template_id == template_id
    )
    row = (await tx.execute(found)).one_or_none()
    return None if row is None else read_build(tuple(row))


async def change_state(
    tx: Tx, build: Build, state: BuildState, *, at: int, reason: str = "", failed_step: str = ""
) -> bool:
    """Write a build's new state, if it is still in the state we saw."""
    finished = state in {BuildState.READY, BuildState.ERROR}
    changed = await tx.execute(
        update(template_builds)
        .where(template_builds.c.id == build.id, template_builds.c.state == build.state.value)
        .values(
            state=state.value,
            reason=reason,
            failed_step=failed_step,
            updated_at=at,
            finished_at=at if finished else None,
            ready_at=at if state is BuildState.READY else template_builds.c.ready_at,
        )
    )
    return changed.rowcount == 1


async def finish_build(tx: Tx, build: Build, image: ImageReport, *, at: int) -> bool:
    """Write down that a build is ready, and what it really is; False if it is past that."""
    if not await change_state(tx, build, BuildState.READY, at=at):
        return False
    await tx.execute(
        update(template_builds)
        .where(template_builds.c.id == build.id)
        .values(
            vcpu_count=image.vcpu_count,
            memory_mib=image.memory_mib,
            disk_mib=image.disk_mib,
            envd_version=image.agent_version or AGENT_VERSION,
        )
    )
    return True


async def set_tag(tx: Tx, template_id: TemplateId, tag: str, build_id: BuildId, at: int) -> None:
    await tx.execute(
        delete(template_tags).where(
            template_tags.c.template_id == template_id, template_tags.c.tag == tag
        )
    )
    await tx.execute(
        insert(template_tags).values(
            template_id=template_id, tag=tag, build_id=build_id, created_at=at
        )
    )


async def drop_tags_of(tx: Tx, build_id: BuildId) -> None:
    await tx.execute(delete(template_tags).where(template_tags.c.build_id == build_id))


def _visible(team_id: TeamId) -> Select[Any]:
    return select(*templates.c).where(
        or_(templates.c.team_id == team_id, templates.c.team_id.is_(None))
    )


def _build_or_none(row: tuple[object, ...]) -> Build | None:
    return None if row[0] is None else read_build(row)


def read_build(row: tuple[object, ...]) -> Build:
    build_id, template_id, node_id, state, *rest = row
    return Build(build_id, template_id, node_id, BuildState(str(state)), *rest)  # type: ignore[arg-type]
