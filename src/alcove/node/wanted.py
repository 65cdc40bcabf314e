"""What a build of each recipe would be made of now: what finished builds are compared with."""

from dataclasses import dataclass

import structlog

from alcove.node.ground import Size
from alcove.node.image_records import ImageRecord
from alcove.node.origins import Startup
from alcove.node.recipes import Recipe, RecipeError, Recipes
from alcove.node.rootfs import RootfsStore
from alcove.node.roots import RootfsError
from alcove.wire.node import ImageSpec

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Wanted:
    rootfs: str
    startup: Startup
    size: Size


class WantedRecipes:
    def __init__(self, recipes: Recipes, rootfs: RootfsStore) -> None:
        self._recipes = recipes
        self._rootfs = rootfs
        self._wanted: dict[str, _Wanted] = {}

    def read(self) -> None:
        """Read all recipes again."""
        self._wanted = {}
        for name in self._recipes.names():
            try:
                recipe = self._recipes.get(name)
                digest = self._rootfs.digest(recipe)
            except (RecipeError, RootfsError, OSError) as error:
                # The build itself says so to whoever waits for it.
                _log.warning("recipe.unusable", recipe=name, why=str(error))
            else:
                self._wanted[name] = _Wanted(digest, recipe.startup, _size(recipe))

    def note(self, recipe: Recipe, rootfs: str) -> None:
        """The recipe was read again for a build, and this is what was made of it."""
        if recipe.name in self._wanted:
            self._wanted[recipe.name] = _Wanted(rootfs, recipe.startup, _size(recipe))

    def differs(self, record: ImageRecord) -> bool:
        """Whether its recipe would make something else now."""
        wanted = self._wanted.get(record.spec.recipe)
        made = _Wanted(record.rootfs, record.startup, _size(record.spec))
        return wanted is not None and made != wanted


def _size(of: Recipe | ImageSpec) -> Size:
    return Size(of.vcpu_count, of.memory_mib, of.disk_mib)
