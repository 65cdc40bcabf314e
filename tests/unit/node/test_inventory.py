"""What a root holds, and that changes are noticed."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from alcove.node import inventory
from alcove.node.inventory import Inventory
from alcove.node.roots import RootfsError, Roots

STATUS = """\
Package: bash
Status: install ok installed
Version: 5.2

Package: gone
Status: deinstall ok config-files
Version: 1
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Of a store's that has one root, "one"."""
    made = tmp_path / "store/one/root"
    (made / "var/lib/dpkg").mkdir(parents=True)
    (made / "var/lib/dpkg/status").write_text(STATUS)
    (made / "usr/lib/python3/dist-packages/some_thing-1.2.dist-info").mkdir(parents=True)
    (made / "file").write_text("content")
    (made / "link").symlink_to("file")
    (made.parent / "manifest.json").write_text(json.dumps({"bytes": 1}))
    return made


def test_packages(root: Path) -> None:
    found = inventory.look(root)
    assert found.dpkg == {"bash": "5.2"}
    assert found.pip == {"some-thing": "1.2"}
    assert asyncio.run(inventory.take(root)) == found


def test_a_list_of_packages_that_is_a_link_is_not_read(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (root / "var/lib/dpkg").rename(outside)
    (root / "var/lib/dpkg").symlink_to(outside)
    assert inventory.look(root).dpkg == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "file").write_text("longer content"),
        lambda root: (root / "file").chmod(0o600),
        lambda root: (root / "file").unlink(),
        lambda root: (root / "new").touch(),
        lambda root: os.utime(root / "file", (1, 1)),
        lambda root: ((root / "link").unlink(), (root / "link").symlink_to("new")),
    ],
)
def test_a_change_is_noticed(root: Path, change) -> None:
    async def scenario() -> None:
        roots = Roots(root.parent.parent)
        before = await roots.inventory("one")
        assert await roots.damaged({"one"}) == {}
        assert roots.is_usable("one")
        change(root)
        assert await roots.inventory("one") == before  # as it was recorded
        [(digest, why)] = (await roots.damaged({"one"})).items()
        assert digest == "one"
        assert why.startswith("damaged: files of its root file system were changed")
        with pytest.raises(RootfsError, match="damaged"):
            await roots.stack("two", "one", [], 0)
        with pytest.raises(RootfsError, match="damaged"):
            await roots.manifest_in_use("one")

    asyncio.run(scenario())


def test_mount_points_that_the_driver_makes_are_no_change(root: Path) -> None:
    before = inventory.look(root)
    (root / ".alcove-volumes").mkdir()
    assert inventory.look(root) == before


def test_links_from_other_roots_are_no_change(root: Path, tmp_path: Path) -> None:
    before = inventory.look(root)
    os.link(root / "file", tmp_path / "other")
    assert inventory.look(root) == before


def test_one_that_cannot_be_read_is_made_anew(tmp_path: Path) -> None:
    assert Inventory.read(tmp_path / "none") is None
    (tmp_path / "other").write_text('{"unknown": 1}')
    assert Inventory.read(tmp_path / "other") is None
