"""Snapshots as their owners see them: builds of templates of the kind "snapshot"."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, delete, or_, select

from alcove.control.db import Tx
from alcove.control.errors import ConflictError
from alcove.control.snapshots.names import Name, Reference, is_uuid
from alcove.control.snapshots.store import Snapshot
from alcove.control.snapshots.tables import snapshots
from alcove.control.teams.store import Team
from alcove.control.templates import store as templates
from alcove.control.templates.store import DEFAULT_TAG, SNAPSHOT, Build, Template
from alcove.control.templates.tables import template_aliases, template_builds, template_tags
from alcove.control.templates.tables import templates as template_table
from alcove.wire.ids import (
    BuildId,
    SandboxId,
    SnapshotId,
    TeamId,
    TemplateId,
    new_template_id,
)
from alcove.wire.states import BuildState


@dataclass(frozen=True, slots=True)
class Shown:
    """One snapshot in the list of its team."""

    snapshot_id: SnapshotId
    template_id: TemplateId
    build_id: BuildId
    sandbox_id: SandboxId
    generation: int
    """The life of the sandbox that it shows."""
    parent_id: SnapshotId | None
    """What that life was started from."""
    memory: bool
    size_bytes: int
    created_at: int
    aliases: tuple[str, ...]
    """With their namespace."""
    tags: tuple[str, ...]

    @property
    def public_id(self) -> str:
        """What clients call it; a snapshot whose tag went to a newer one is named by its build."""
        owner = self.aliases[0] if self.aliases else self.template_id
        return f"{owner}:{self.tags[0] if self.tags else self.build_id}"

    @property
    def names(self) -> list[str]:
        return [f"{alias}:{tag}" for alias in self.aliases for tag in self.tags]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which snapshots of a team to list."""

    team_id: TeamId
    sandbox_ids: Sequence[SandboxId] | None = None
    reference: Reference | None = None
    slug: str = ""
    """Of the team, the namespace of its names."""
    oldest_first: bool = False


async def refuse_clash(tx: Tx, team: Team, name: Name) -> None:
    """A name means one thing: no snapshot is called like a template the team can use."""
    for found in await templates.find_named(
        tx, (team.slug, ""), name.alias, DEFAULT_TAG, by_id=False
    ):
        if found.template.kind != SNAPSHOT:
            raise ConflictError(
                f"'{name.alias}' is the name of a template; choose another name for the snapshot"
            )


async def publish(tx: Tx, team: Team, snapshot: Snapshot, name: Name | None, now: int) -> Shown:
    """Show a ready snapshot to its team: a build of the template of its name, or of a new one."""
    template_id = None if name is None else await _template_called(tx, team, name)
    if template_id is None:
        template_id = await _new_template(tx, team, snapshot, name, now)
    build_id = BuildId(snapshot.id)
    await templates.insert_build(
        tx,
        Build(
            id=build_id,
            template_id=template_id,
            node_id=snapshot.node_id,
            state=BuildState.READY,
            vcpu_count=snapshot.vcpu_count,
            memory_mib=snapshot.memory_mib,
            disk_mib=snapshot.disk_mib,
            envd_version=snapshot.envd_version,
            reason="",
            created_at=now,
            updated_at=now,
            ready_at=now,
            finished_at=now,
            snapshot_id=snapshot.id,
        ),
    )
    tag = DEFAULT_TAG if name is None else name.tag
    await templates.set_tag(tx, template_id, tag, build_id, now)
    [shown] = await _shown(tx, _builds(team.id).where(template_builds.c.id == build_id))
    return shown


async def page(
    tx: Tx, wanted: Wanted, *, after: tuple[int, str] | None = None, limit: int
) -> list[Shown]:
    """Snapshots of a team, newest first unless wanted otherwise."""
    found = _builds(wanted.team_id)
    if wanted.sandbox_ids is not None:
        found = found.where(snapshots.c.sandbox_id.in_(wanted.sandbox_ids))
    if wanted.reference is not None:
        found = found.where(_means(wanted.reference, wanted.slug))
    at, ident = template_builds.c.created_at, template_builds.c.id
    if after is not None:
        moment, build_id = after
        found = found.where(or_(at < moment, and_(at == moment, ident < build_id)))
    order = (at, ident) if wanted.oldest_first else (at.desc(), ident.desc())
    return await _shown(tx, found.order_by(*order).limit(limit))


async def find(tx: Tx, team_id: TeamId, snapshot_id: SnapshotId) -> Shown | None:
    shown = await _shown(tx, _builds(team_id).where(template_builds.c.snapshot_id == snapshot_id))
    return shown[0] if shown else None


async def unnamed(tx: Tx, *, before: int, limit: int) -> list[tuple[TeamId, Shown]]:
    """Snapshots without a name that were taken before a moment, the oldest first."""
    named = select(template_aliases.c.template_id)
    old = (
        select(template_table.c.team_id, template_builds.c.snapshot_id)
        .select_from(template_builds)
        .join(template_table, template_table.c.id == template_builds.c.template_id)
        .where(
            template_table.c.kind == SNAPSHOT,
            template_table.c.id.not_in(named),
            template_builds.c.created_at < before,
        )
    )
    rows = (await tx.execute(old.order_by(template_builds.c.created_at).limit(limit))).all()
    found = [(team_id, await find(tx, team_id, snapshot_id)) for team_id, snapshot_id in rows]
    return [(team_id, shown) for team_id, shown in found if shown is not None]


async def withdraw(tx: Tx, gone: Sequence[Shown]) -> None:
    """Show these no longer; nobody can start from them from now on."""
    for shown in gone:
        await templates.drop_tags_of(tx, shown.build_id)
        await tx.execute(delete(template_builds).where(template_builds.c.id == shown.build_id))
    for template_id in {shown.template_id for shown in gone}:
        if await templates.count_builds(tx, template_id) == 0:
            await tx.execute(
                delete(template_aliases).where(template_aliases.c.template_id == template_id)
            )
            await tx.execute(delete(template_table).where(template_table.c.id == template_id))


def showing() -> Select[Any]:
    """Ids of the snapshots that are shown."""
    return select(template_builds.c.snapshot_id).where(template_builds.c.snapshot_id.is_not(None))


async def _template_called(tx: Tx, team: Team, name: Name) -> TemplateId | None:
    found = await templates.find_named(tx, (team.slug,), name.alias, name.tag, by_id=False)
    return found[0].template.id if found else None


async def _new_template(
    tx: Tx, team: Team, snapshot: Snapshot, name: Name | None, now: int
) -> TemplateId:
    template = Template(
        id=new_template_id(),
        team_id=team.id,
        recipe=None,
        public=False,
        created_at=now,
        updated_at=now,
        last_spawned_at=None,
        spawn_count=0,
        kind=SNAPSHOT,
        origin_sandbox_id=snapshot.sandbox_id,
    )
    aliases = () if name is None else (name.alias,)
    await templates.insert_template(tx, template, team.slug, aliases)
    return template.id


def _builds(team_id: TeamId) -> Select[Any]:
    return (
        select(
            snapshots.c.id,
            template_builds.c.template_id,
            template_builds.c.id,
            snapshots.c.sandbox_id,
            snapshots.c.generation,
            snapshots.c.parent_id,
            snapshots.c.memory,
            snapshots.c.size_bytes,
            template_builds.c.created_at,
        )
        .select_from(template_builds)
        .join(template_table, template_table.c.id == template_builds.c.template_id)
        .join(snapshots, snapshots.c.id == template_builds.c.snapshot_id)
        .where(template_table.c.team_id == team_id, template_table.c.kind == SNAPSHOT)
    )


def _means(reference: Reference, slug: str) -> ColumnElement[bool]:
    """The condition that a build is what the reference names."""
    named: ColumnElement[bool] = template_builds.c.template_id.in_(
        select(template_aliases.c.template_id).where(
            template_aliases.c.namespace == (reference.namespace or slug),
            template_aliases.c.alias == reference.name,
        )
    )
    if reference.namespace is None:
        named = or_(named, template_builds.c.template_id == reference.name)
    if reference.tag is None:
        return named
    if is_uuid(reference.tag):
        return and_(named, template_builds.c.id == reference.tag)
    tagged = template_builds.c.id.in_(
        select(template_tags.c.build_id).where(
            template_tags.c.template_id == template_builds.c.template_id,
            template_tags.c.tag == reference.tag,
        )
    )
    return and_(named, tagged)


async def _shown(tx: Tx, found: Select[Any]) -> list[Shown]:
    rows = (await tx.execute(found)).all()
    aliases = await templates.aliases_of(tx, [row[1] for row in rows])
    tags: dict[BuildId, list[str]] = {}
    tagged = select(template_tags.c.build_id, template_tags.c.tag).where(
        template_tags.c.build_id.in_([row[2] for row in rows])
    )
    for build_id, tag in await tx.execute(tagged.order_by(template_tags.c.tag)):
        tags.setdefault(build_id, []).append(tag)
    return [
        Shown(
            snapshot_id=row[0],
            template_id=row[1],
            build_id=row[2],
            sandbox_id=row[3],
            generation=row[4],
            parent_id=row[5],
            memory=row[6],
            size_bytes=row[7],
            created_at=row[8],
            aliases=tuple(aliases.get(row[1], ())),
            tags=tuple(tags.get(row[2], ())),
        )
        for row in rows
    ]
