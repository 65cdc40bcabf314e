"""The files of a volume: the contract's words, and that nothing leads out of it."""

import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alcove.node.volumes.errors import ContentError
from alcove.node.volumes.tree import Ownership, Tree

MINE = Ownership(os.getuid(), os.getgid())


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "secret").write_text("host")
    volume = tmp_path / "volume"
    volume.mkdir()
    yield volume
    assert (tmp_path / "secret").read_text() == "host"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["secret", "volume"]


def write(tree: Tree, path: str, data: bytes, *, force: bool = False) -> dict[str, Any]:
    with tree.writing(path, MINE, force=force) as upload:
        os.write(upload.fd, data)
        return tree.keep(upload)


def read(tree: Tree, path: str) -> bytes:
    with tree.reading(path) as fd:
        return os.read(fd, 1 << 20)


def refusal(call: Callable[[], Any]) -> tuple[int, str]:
    with pytest.raises(ContentError) as caught:
        call()
    return caught.value.status, caught.value.code


def test_files_are_written_read_and_shown(root: Path) -> None:
    tree = Tree(root)
    shown = write(tree, "a.txt", b"one")
    assert (shown["name"], shown["type"], shown["path"]) == ("a.txt", "file", "/a.txt")
    assert (shown["size"], shown["mode"], shown["uid"]) == (3, 0o666, os.getuid())
    assert shown["mtime"].endswith("Z")
    assert refusal(lambda: write(tree, "/a.txt", b"two")) == (409, "PATH_ALREADY_EXISTS")
    assert read(tree, "a.txt") == b"one"
    assert write(tree, "/x/y/b.txt", b"two", force=True)["path"] == "/x/y/b.txt"
    assert stat.S_IMODE((root / "x").stat().st_mode) == 0o777
    write(tree, "a.txt", b"longer", force=True)
    assert read(tree, "/x/../a.txt") == b"longer"
    assert refusal(lambda: write(tree, "no/c.txt", b"")) == (404, "PATH_NOT_FOUND")
    assert refusal(lambda: write(tree, "x", b"", force=True)) == (400, "INVALID_REQUEST")
    assert refusal(lambda: read(tree, "x")) == (400, "INVALID_REQUEST")
    assert refusal(lambda: read(tree, "a.txt/b")) == (400, "INVALID_REQUEST")
    assert refusal(lambda: read(tree, "")) == (400, "INVALID_REQUEST")
    assert refusal(lambda: read(tree, "n" * 256)) == (400, "INVALID_REQUEST")
    assert [entry.name for entry in root.iterdir() if entry.name.startswith(".")] == []


def test_an_upload_that_is_not_kept_leaves_nothing(root: Path) -> None:
    tree = Tree(root)
    write(tree, "a.txt", b"old")
    with tree.writing("a.txt", MINE, force=True) as upload:
        os.write(upload.fd, b"half of the new")
    with tree.writing("b.txt", MINE, force=False):
        pass
    assert [entry.name for entry in root.iterdir()] == ["a.txt"]
    assert read(tree, "a.txt") == b"old"


def test_directories_are_made_listed_and_removed(root: Path) -> None:
    tree = Tree(root)
    assert refusal(lambda: tree.make_directory("a/b", MINE, force=False))[0] == 404
    assert tree.make_directory("a/b", MINE, force=True)["type"] == "directory"
    assert refusal(lambda: tree.make_directory("a", MINE, force=False))[0] == 409
    assert tree.make_directory("a", MINE, force=True)["path"] == "/a"
    write(tree, "a/b/c", b"")
    assert refusal(lambda: tree.make_directory("a/b/c", MINE, force=True))[0] == 409
    assert [entry["path"] for entry in tree.entries("/", 1)] == ["/a"]
    assert [entry["path"] for entry in tree.entries("/", 3)] == ["/a", "/a/b", "/a/b/c"]
    assert refusal(lambda: tree.entries("/", 11)) == (400, "DEPTH_OUT_OF_RANGE")
    assert refusal(lambda: tree.entries("a/b/c", 1)) == (400, "INVALID_REQUEST")
    assert refusal(lambda: tree.remove("/")) == (400, "CANNOT_DELETE_ROOT")
    assert refusal(lambda: tree.remove("nothing")) == (404, "PATH_NOT_FOUND")
    tree.remove("a")
    assert tree.entries("/", 1) == []


def test_a_tree_deeper_than_any_stack_is_removed(root: Path) -> None:
    fd = os.open(root, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    Tree(root).remove("d")
    assert list(root.iterdir()) == []


def test_links_stay_inside(root: Path) -> None:
    tree = Tree(root)
    write(tree, "a/f", b"inside", force=True)
    secret = root.parent / "secret"
    (root / "up").symlink_to("../secret")
    (root / "absolute").symlink_to(secret)
    (root / "parent").symlink_to("..")
    (root / "link").symlink_to("/a")
    (root / "loop").symlink_to("loop")
    (root / "magic").symlink_to("/proc/self/root/etc")
    assert read(tree, "link/f") == b"inside"  # as the guest sees it from the volume's root
    for path in ("up", "absolute", "parent/secret", "magic/passwd"):
        assert refusal(lambda path=path: read(tree, path))[0] == 404, path
    assert refusal(lambda: read(tree, "loop")) == (400, "INVALID_REQUEST")
    shown = tree.stat("absolute")
    assert (shown["type"], shown["target"]) == ("symlink", str(secret))
    assert refusal(lambda: write(tree, "up", b"x"))[0] == 409
    write(tree, "up", b"mine", force=True)  # the link is replaced, not followed
    assert (root / "up").read_text() == "mine"
    write(tree, "parent/new", b"x", force=True)
    assert (root / "new").read_text() == "x"
    tree.remove("link")
    assert read(tree, "a/f") == b"inside"
    with pytest.raises(ContentError):
        tree.change("absolute", Ownership(mode=0o777))
    assert stat.S_IMODE(secret.stat().st_mode) != 0o777


def test_pipes_and_sockets_are_not_read_or_waited_for(root: Path) -> None:
    tree = Tree(root)
    os.mkfifo(root / "pipe")
    assert refusal(lambda: read(tree, "pipe")) == (400, "NOT_SUPPORTED")
    assert tree.stat("pipe")["type"] == "unknown"
    write(tree, "pipe", b"a file now", force=True)
    assert read(tree, "pipe") == b"a file now"


def test_names_and_times_that_a_guest_may_choose_are_shown(root: Path) -> None:
    os.close(os.open(os.fsencode(root) + b"/\xff\xfe", os.O_CREAT | os.O_WRONLY))
    (root / "old").touch()
    os.utime(root / "old", (-(2**31), 2**33))
    shown = {entry["name"]: entry for entry in Tree(root).entries("/", 1)}
    assert set(shown) == {"\ufffd\ufffd", "old"}


@pytest.mark.parametrize("act", ["read", "write", "remove", "change", "list", "make"])
def test_a_directory_that_turns_into_a_link_leads_nowhere(root: Path, act: str) -> None:
    """A guest swaps `d` for a link to the directory that the secret is in, again and again."""
    tree, outside = Tree(root), root.parent
    (root / "real").mkdir()
    (root / "link").symlink_to(outside)
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            for name in ("real", "link"):
                try:
                    (root / name).rename(root / "d")
                    (root / "d").rename(root / name)
                except OSError:  # the other side has made a directory of that name
                    shutil.rmtree(root / "d", ignore_errors=True)

    acts: dict[str, Callable[[], Any]] = {
        "read": lambda: read(tree, "d/secret"),
        "write": lambda: write(tree, "d/planted", b"x", force=True),
        "remove": lambda: tree.remove("d/secret"),
        "change": lambda: tree.change("d/secret", Ownership(mode=0o777)),
        "list": lambda: [e["name"] for e in tree.entries("d", 2) if e["name"] == "secret"],
        "make": lambda: tree.make_directory("d/made", MINE, force=False),
    }
    mode = (outside / "secret").stat().st_mode
    guest = threading.Thread(target=swap)
    guest.start()
    try:
        for _ in range(300):
            try:
                answer = acts[act]()
            except ContentError:
                continue
            assert answer not in (b"host", ["secret"])
    finally:
        done.set()
        guest.join()
    assert (outside / "secret").stat().st_mode == mode
