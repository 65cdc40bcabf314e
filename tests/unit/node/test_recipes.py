"""Recipes: what ships is usable, what is wrong is named."""

from pathlib import Path

import pytest

from alcove.node.recipes import RecipeError, Recipes, UnknownRecipeError

GOOD = {
    "aliases": '["mine"]',
    "vcpu_count": "1",
    "memory_mib": "512",
    "disk_mib": "1024",
    "user": '"user"',
    "workdir": '"/home/user"',
    "packages": '["bash"]',
    "suites": '{ debian = "bookworm" }',
}


def write(directory: Path, fields: dict[str, str], name: str = "mine") -> Recipes:
    folder = directory / name
    folder.mkdir()
    text = "".join(f"{name} = {value}\n" for name, value in fields.items())
    (folder / "recipe.toml").write_text(text)
    (folder / "provision.sh").write_text("#!/bin/sh\n")
    return Recipes(directory)


def test_base_ships_with_what_the_contract_asks_for() -> None:
    recipes = Recipes()
    assert "base" in recipes.names()
    base = recipes.get("base")
    assert (base.user, base.workdir) == ("user", "/home/user")
    assert {"python3", "git", "gh", "curl", "sudo", "procps", "build-essential"} <= set(
        base.packages
    )
    assert {"debian", "ubuntu"} <= base.suites.keys()
    assert base.provision.stat().st_mode & 0o100


def test_a_good_recipe_is_read(tmp_path: Path) -> None:
    recipe = write(tmp_path, GOOD).get("mine")
    assert recipe.name == "mine"
    assert recipe.memory_mib == 512
    assert recipe.start_command == ""
    assert recipe.suites == {"debian": "bookworm"}


@pytest.mark.parametrize("name", ["", ".", "..", "../images/base", "/etc", "base\0", "BASE"])
def test_names_of_nothing_are_refused(name: str) -> None:
    with pytest.raises(UnknownRecipeError):
        Recipes().get(name)


def child(parent: str) -> dict[str, str]:
    fields = GOOD | {"parent": f'"{parent}"', "aliases": '["other"]'}
    return {name: value for name, value in fields.items() if name != "suites"}


def test_all_that_ship_can_be_used_and_come_parents_first() -> None:
    names = [recipe.name for recipe in Recipes().all()]
    assert sorted(names) == Recipes().names()
    assert names[0] == "base"


def test_a_parent_is_read_with_its_child_and_comes_first(tmp_path: Path) -> None:
    write(tmp_path, child("mine"), "added")
    recipes = write(tmp_path, GOOD)
    assert [recipe.name for recipe in recipes.all()] == ["mine", "added"]
    added = recipes.get("added")
    assert added.parent == recipes.get("mine")
    assert added.suites == {}
    report = added.report()
    assert (report.aliases, report.memory_mib) == (["other"], 512)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (child("nobody"), "nobody"),
        (child("added"), "own parent"),
        (child("mine") | {"suites": '{ debian = "bookworm" }'}, "suites"),
        (child("mine") | {"parent": "1"}, "parent must be of type str"),
    ],
)
def test_a_child_that_cannot_be_is_refused(
    tmp_path: Path, fields: dict[str, str], reason: str
) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(RecipeError, match=reason):
        write(tmp_path, fields, "added").get("added")


def test_a_name_for_two_recipes_is_refused(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(RecipeError, match="both have alias 'mine'"):
        write(tmp_path, GOOD, "added").all()


def test_a_node_may_build_some_of_them_only(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    write(tmp_path, child("mine"), "added")
    recipes = Recipes(tmp_path, frozenset({"added"}))
    assert [recipe.name for recipe in recipes.all()] == ["added"]
    assert recipes.get("added").parent is not None
    with pytest.raises(UnknownRecipeError, match="this node has added"):
        recipes.get("mine")


def test_the_files_that_matter(tmp_path: Path) -> None:
    recipe = write(tmp_path, GOOD).get("mine")
    for name in ("server/app.py", "server/__pycache__/app.cpython-311.pyc", "start.sh", "a.pyc"):
        path = recipe.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    assert [str(name) for name in recipe.files()] == ["provision.sh", "server/app.py", "start.sh"]


@pytest.mark.parametrize("missing", sorted(GOOD))
def test_a_missing_field_is_named(tmp_path: Path, missing: str) -> None:
    fields = {name: value for name, value in GOOD.items() if name != missing}
    with pytest.raises(RecipeError, match=missing):
        write(tmp_path, fields).get("mine")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vcpu_count", '"2"'),
        ("vcpu_count", "true"),
        ("memory_mib", "0"),
        ("disk_mib", "-1"),
        ("packages", '"bash"'),
        ("packages", "[1]"),
        ("env", "{ a = 1 }"),
        ("memmory_mib", "512"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, field: str, value: str) -> None:
    with pytest.raises(RecipeError, match=field):
        write(tmp_path, GOOD | {field: value}).get("mine")


def test_a_recipe_without_provision_is_refused(tmp_path: Path) -> None:
    recipes = write(tmp_path, GOOD)
    (tmp_path / "mine" / "provision.sh").unlink()
    with pytest.raises(RecipeError, match="provision.sh"):
        recipes.get("mine")


def test_a_warm_command_is_part_of_how_a_template_starts(tmp_path: Path) -> None:
    recipe = write(tmp_path, GOOD | {"warm_command": '"touch /warm"'}).get("mine")
    assert recipe.startup.warm_command == "touch /warm"
    assert Recipes().get("base").startup.warm_command == ""
    assert Recipes().get("code_interpreter").warm_command
