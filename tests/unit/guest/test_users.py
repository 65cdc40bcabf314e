"""Users of an image and paths they mean (contract e2b 3.2)."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.guest import users
from alcove.guest.users import InvalidPathError, UnknownUserError, User

ANNA = User("anna", 1000, 1000, "/home/anna", "/bin/bash", (1000,))


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(users, "_USERS_FILE", str(tmp_path / "passwd"))
    monkeypatch.setattr(users, "_GROUPS_FILE", str(tmp_path / "group"))
    return tmp_path


def test_users_have_their_groups_and_new_ones_are_seen(image: Path) -> None:
    (image / "passwd").write_text("anna:x:1000:1000::/home/anna:/bin/bash\nbroken line\n::\n")
    (image / "group").write_text("wheel:x:10:bob,anna\nanna:x:1000:\nempty:x:11:\n")
    assert users.lookup("anna").groups == (1000, 10)
    with pytest.raises(UnknownUserError, match="bob"):
        users.lookup("bob")
    (image / "passwd").write_text("bob:x:1001:1001:::\n")
    assert users.lookup("bob") == User("bob", 1001, 1001, "/", "/bin/sh", (1001, 10))


def test_an_image_without_users_has_root(image: Path) -> None:
    assert users.lookup("root").uid == 0
    with pytest.raises(UnknownUserError):
        users.lookup("user")


@pytest.mark.parametrize(
    ("path", "workdir", "meant"),
    [
        ("", None, "/home/anna"),
        ("", "/code", "/code"),
        ("~", "/code", "/home/anna"),
        ("~/x/../y", None, "/home/anna/y"),
        ("a/./b//c", "/code", "/home/anna/a/b/c"),
        ("../bob", None, "/home/bob"),
        ("/verbatim//../x/", None, "/verbatim//../x/"),
    ],
)
def test_paths(path: str, workdir: str | None, meant: str) -> None:
    assert users.resolve_path(path, ANNA, workdir) == meant


@pytest.mark.parametrize("path", ["~bob", "~bob/x", "a\0b", "\ud800"])
def test_paths_that_mean_nothing_are_refused(path: str) -> None:
    with pytest.raises(InvalidPathError):
        users.resolve_path(path, ANNA, None)


@given(st.text())
def test_every_other_path_is_absolute(path: str) -> None:
    try:
        meant = users.resolve_path(path, ANNA, None)
    except InvalidPathError:
        return
    assert meant.startswith("/")
