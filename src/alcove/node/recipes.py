"""Recipes: what goes into a template. One folder under alcove/images/ per recipe.

recipe.toml     packages, defaults, start and ready command
provision.sh    run as root inside the new root file system, with network
"""

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import alcove
from alcove.node.origins import Startup

SHIPPED = Path(alcove.__file__).parent / "images"


class RecipeError(Exception):
    """A recipe cannot be used; the message names the file and the field.

    RecipeError
    └── UnknownRecipeError     no folder of that name
    """


class UnknownRecipeError(RecipeError):
    pass


@dataclass(frozen=True, slots=True)
class Recipe:
    name: str
    directory: Path
    packages: list[str]
    suites: dict[str, str]
    """Release of the distribution to build from, by the ID of the machine's distribution."""
    aliases: list[str]
    vcpu_count: int
    memory_mib: int
    disk_mib: int
    user: str
    workdir: str
    start_command: str = ""
    """Runs in the background as `user` before the snapshot is taken; empty for none."""
    ready_command: str = ""
    """Tried every 2 s until it exits with 0; then the snapshot is taken."""
    env: dict[str, str] = field(default_factory=dict)

    @property
    def startup(self) -> Startup:
        return Startup(
            self.user, self.workdir, self.start_command, self.ready_command, dict(self.env)
        )

    @property
    def provision(self) -> Path:
        return self.directory / "provision.sh"


class Recipes:
    """The recipes in one folder, read afresh each time."""

    def __init__(self, directory: Path = SHIPPED) -> None:
        self._directory = directory

    def names(self) -> list[str]:
        return sorted(path.parent.name for path in self._directory.glob("*/recipe.toml"))

    def get(self, name: str) -> Recipe:
        """Raises UnknownRecipeError, or RecipeError when the folder's contents are wrong."""
        # The name comes from a client: only a name that is listed may become a path.
        if name not in self.names():
            raise UnknownRecipeError(
                f"there is no recipe {name!r}; this node has {', '.join(self.names()) or 'none'}"
            )
        return _read(self._directory / name)


def _read(directory: Path) -> Recipe:
    path = directory / "recipe.toml"
    try:
        data = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} cannot be read as TOML") from error
    for entry in dataclasses.fields(Recipe):
        if entry.name in {"name", "directory"}:
            continue
        if entry.name in data:
            _check(path, entry.name, data[entry.name])
        elif entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
            raise RecipeError(f"{path}: {entry.name} is missing")
    if unknown := data.keys() - _KINDS.keys():
        raise RecipeError(f"{path}: unknown field {', '.join(sorted(unknown))}")
    recipe = Recipe(name=directory.name, directory=directory, **data)
    if not recipe.provision.is_file():
        raise RecipeError(f"{recipe.provision} is missing")
    return recipe


_KINDS: dict[str, type] = {
    "packages": list,
    "suites": dict,
    "aliases": list,
    "vcpu_count": int,
    "memory_mib": int,
    "disk_mib": int,
    "user": str,
    "workdir": str,
    "start_command": str,
    "ready_command": str,
    "env": dict,
}


def _check(path: Path, name: str, value: Any) -> None:
    kind = _KINDS[name]
    if type(value) is not kind:
        raise RecipeError(f"{path}: {name} must be of type {kind.__name__}")
    match value:
        case int() if value <= 0:
            raise RecipeError(f"{path}: {name} must be greater than zero")
        case list() | dict():
            texts = value if isinstance(value, list) else [*value, *value.values()]
            if not all(isinstance(text, str) for text in texts):
                raise RecipeError(f"{path}: {name} must hold only texts")
