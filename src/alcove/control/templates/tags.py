"""Tags of a team's templates: names of builds that can be moved, removed and looked back on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alcove.control.clock import now_us
from alcove.control.db import Database, Tx
from alcove.control.errors import InvalidRequestError, NotFoundError
from alcove.control.teams import store as teams
from alcove.control.teams.service import Caller
from alcove.control.templates import build_store, store
from alcove.control.templates.build_store import Assignment, Tagged
from alcove.control.templates.builds import own
from alcove.control.templates.names import is_uuid, read_name, read_tag, read_tags
from alcove.control.templates.service import Templates
from alcove.control.templates.store import DEFAULT_TAG, Build, Template
from alcove.wire.ids import BuildId, TemplateId
from alcove.wire.states import BuildState


@dataclass(frozen=True, slots=True)
class Group:
    """A tag with the last of its history."""

    tag: str
    assignments: list[Assignment]
    has_more: bool


@dataclass(frozen=True, slots=True)
class Groups:
    """Which groups of a template's tags to show, and in what order."""

    search: str = ""
    by_name: bool = False
    descending: bool = True
    offset: int = 0
    limit: int = 25
    assignments: int = 6
    """Of each tag."""


class Tags:
    def __init__(
        self, db: Database, templates: Templates, clock: Callable[[], int] = now_us
    ) -> None:
        self._db = db
        self._templates = templates
        self._clock = clock

    async def assign(
        self, caller: Caller, target: str, tags: Sequence[str]
    ) -> tuple[list[str], BuildId]:
        """Give the build that `name[:tag]` means more tags. Raises NotFoundError, 400."""
        wanted = read_tags(tags)
        if not wanted:
            raise InvalidRequestError("tags must hold at least one tag")
        alias, _, tag = target.strip().partition(":")
        name = read_name(alias, caller.team.slug).alias
        tag = tag.lower() or DEFAULT_TAG
        if ":" in target and not is_uuid(tag):
            tag = read_tag(target.strip().partition(":")[2])
        async with self._db.transaction() as tx:
            await teams.lock_team(tx, caller.team_id)
            template = await own(tx, caller, name)
            build = await self._tagged(tx, template, tag)
            if build is None:
                raise NotFoundError(f"tag '{tag}' does not exist for template '{alias}'")
            await build_store.assign(tx, template.id, wanted, build.id, self._clock())
        return wanted, build.id

    async def remove(self, caller: Caller, name: str, tags: Sequence[str]) -> None:
        if ":" in name:
            raise InvalidRequestError("name must not carry a tag; the tags are given beside it")
        wanted = read_tags(tags)
        if not wanted:
            raise InvalidRequestError("tags must hold at least one tag")
        if DEFAULT_TAG in wanted:
            raise InvalidRequestError(f"The tag '{DEFAULT_TAG}' cannot be removed")
        async with self._db.transaction() as tx:
            await teams.lock_team(tx, caller.team_id)
            template = await own(tx, caller, name)
            for tag in wanted:
                await build_store.remove_tag(tx, template.id, tag)

    async def of(self, caller: Caller, text: str) -> list[Tagged]:
        """What the tags of a template mean; also of one that all teams may use."""
        async with self._db.reading() as tx:
            template = await self._templates.readable(tx, caller, text)
            return await build_store.tags_of(tx, template.id)

    async def exists(self, caller: Caller, text: str, tag: str) -> tuple[str, bool]:
        """The tag as it is written, and whether the template has it."""
        written = read_tag(tag)
        found = await self.of(caller, text)
        return written, any(tagged.tag == written for tagged in found)

    async def groups(self, caller: Caller, text: str, wanted: Groups) -> tuple[list[Group], int]:
        """Some tags with the last of their histories, and how many tags there are in all."""
        async with self._db.reading() as tx:
            template = await self._templates.readable(tx, caller, text)
            found = [
                tagged
                for tagged in await build_store.tags_of(tx, template.id)
                if wanted.search in tagged.tag
            ]
            if wanted.by_name:
                found.sort(key=lambda tagged: tagged.tag, reverse=wanted.descending)
            elif not wanted.descending:
                found.reverse()
            shown = found[wanted.offset : wanted.offset + wanted.limit]
            groups = [await self._group(tx, template.id, tagged.tag, wanted) for tagged in shown]
            return groups, len(found)

    async def history(
        self, caller: Caller, text: str, tag: str, *, before: int | None, limit: int
    ) -> list[Assignment]:
        """Which builds had this tag, the newest first."""
        async with self._db.reading() as tx:
            template = await self._templates.readable(tx, caller, text)
            return await build_store.assignments(
                tx, template.id, read_tag(tag), before=before, limit=limit
            )

    async def _group(self, tx: Tx, template_id: TemplateId, tag: str, wanted: Groups) -> Group:
        most = wanted.assignments
        found = await build_store.assignments(tx, template_id, tag, before=None, limit=most + 1)
        return Group(tag, found[:most], len(found) > most)

    async def _tagged(self, tx: Tx, template: Template, tag: str) -> Build | None:
        if is_uuid(tag):
            build = await store.find_build(tx, template.id, BuildId(tag))
            return build if build is not None and build.state is BuildState.READY else None
        for tagged in await build_store.tags_of(tx, template.id):
            if tagged.tag == tag:
                return await store.find_build(tx, template.id, tagged.build_id)
        return None
