import asyncio
import json
import os
import stat
from contextlib import asynccontextmanager

import pytest
from in_loop import in_loop

from alcove.guest import filesystem
from alcove.guest.environment import Environment
from alcove.guest.http import Request
from alcove.guest.rpc import Rpc
from alcove.guest.watchers import Watchers
from alcove.wire import connect

USER = "nobody" if os.geteuid() == 0 else None


class RpcError(Exception):
    def __init__(self, error) -> None:
        super().__init__(error)
        self.code = error["code"]
        self.message = error["message"]


class Client:
    """Calls the service through the real RPC layer, without a socket."""

    def __init__(self) -> None:
        self.environment = Environment()
        rpc = Rpc(self.environment)
        filesystem.register(rpc, Watchers())
        self._handlers = {path.rpartition("/")[2]: handler for _, path, handler in rpc.routes}

    async def __call__(self, method, **message):
        response = await self._handlers[method](
            _request(json.dumps(message).encode(), "application/json")
        )
        answer = json.loads(response.body)
        if response.status != 200:
            raise RpcError(answer)
        return answer

    @asynccontextmanager
    async def stream(self, method, headers=(), **message):
        body = connect.encode_envelope(json.dumps(message).encode())
        response = await self._handlers[method](_request(body, "application/connect+json", headers))

        async def messages():
            decoder = connect.EnvelopeDecoder()
            async for data in response.body:
                for envelope in decoder.feed(data):
                    value = json.loads(envelope.payload)
                    if not envelope.ends_stream:
                        yield value
                    elif "error" in value:
                        raise RpcError(value["error"])

        try:
            yield messages()
        finally:
            await response.body.aclose()


def _request(body, content_type, headers=()):
    async def chunks():
        yield body

    fixed = [("content-type", content_type), *headers]
    if USER is not None:
        fixed.append(("authorization", "Basic bm9ib2R5Og=="))
    return Request("POST", "/", {}, fixed, chunks())


@pytest.fixture
def client():
    return Client()


async def failure(call) -> tuple[str, str]:
    with pytest.raises(RpcError) as caught:
        await call
    return caught.value.code, caught.value.message


@in_loop
async def test_stat(client, tmp_path):
    (tmp_path / "f").write_text("xyz")
    entry = (await client("Stat", path=str(tmp_path / "f")))["entry"]
    assert (entry["name"], entry["size"], entry["type"]) == ("f", "3", "FILE_TYPE_FILE")
    for missing in (tmp_path / "none", tmp_path / "f" / "below"):
        code, message = await failure(client("Stat", path=str(missing)))
        assert (code, message) == ("not_found", f"file not found: {missing}")


@in_loop
async def test_paths_that_are_none(client):
    assert (await failure(client("Stat", path="~other/x")))[0] == "invalid_argument"
    assert (await failure(client("Stat", path="/a\0b")))[0] == "invalid_argument"
    client.environment.default_user = "no-such-user"
    global USER  # noqa: PLW0603
    kept, USER = USER, None
    try:
        assert await failure(client("Stat", path="/")) == (
            "unauthenticated",
            "invalid username: 'no-such-user'",
        )
    finally:
        USER = kept


@in_loop
async def test_make_dir(client, tmp_path):
    path = tmp_path / "a" / "b"
    entry = (await client("MakeDir", path=str(path)))["entry"]
    assert entry["type"] == "FILE_TYPE_DIRECTORY"
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    if USER:
        assert path.owner() == path.parent.owner() == entry["owner"] == USER
    assert await failure(client("MakeDir", path=str(path))) == (
        "already_exists",
        f"directory already exists: {path}",
    )
    (tmp_path / "f").write_text("")
    for blocked in (tmp_path / "f", tmp_path / "f" / "below"):
        assert (await failure(client("MakeDir", path=str(blocked))))[0] == "invalid_argument"


@in_loop
async def test_move(client, tmp_path):
    (tmp_path / "f").write_text("x")
    os.setxattr(tmp_path / "f", "user.e2b.k", b"v")
    target = tmp_path / "new" / "dir" / "g"
    entry = (await client("Move", source=str(tmp_path / "f"), destination=str(target)))["entry"]
    assert (entry["path"], entry["metadata"]) == (str(target), {"k": "v"})
    assert target.read_text() == "x"
    assert not (tmp_path / "f").exists()
    missing = client("Move", source=str(tmp_path / "f"), destination=str(tmp_path / "x" / "y"))
    assert (await failure(missing))[0] == "not_found"
    assert not (tmp_path / "x").exists()
    into_itself = client(
        "Move", source=str(tmp_path / "new"), destination=str(tmp_path / "new" / "inside")
    )
    assert (await failure(into_itself))[0] == "invalid_argument"


@in_loop
async def test_remove(client, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for _ in range(2):
        assert await client("Remove", path=str(tmp_path / "a")) == {}
    assert list(tmp_path.iterdir()) == []
    assert (await failure(client("Remove", path="/")))[0] == "invalid_argument"


def make_tree(root) -> None:
    for directory in ("subdir2", "subdir1"):
        (root / directory).mkdir()
    for name in ("file1", "subdir1/b", "subdir1/a", "subdir2/c", "File0"):
        (root / name).write_text("")
    (root / "subdir1" / "deep").mkdir()
    (root / "subdir1" / "deep" / "leaf").write_text("")
    (root / "loop").symlink_to(root)


@pytest.mark.parametrize(
    ("depth", "names"),
    [
        (0, ["File0", "file1", "loop", "subdir1", "subdir2"]),
        (1, ["File0", "file1", "loop", "subdir1", "subdir2"]),
        (
            2,
            [
                *["File0", "file1", "loop", "subdir1", "subdir1/a", "subdir1/b"],
                *["subdir1/deep", "subdir2", "subdir2/c"],
            ],
        ),
        (
            4_000_000_000,
            [
                *["File0", "file1", "loop", "subdir1", "subdir1/a", "subdir1/b"],
                *["subdir1/deep", "subdir1/deep/leaf", "subdir2", "subdir2/c"],
            ],
        ),
    ],
)
@in_loop
async def test_list_dir(client, tmp_path, depth, names):
    make_tree(tmp_path)
    entries = (await client("ListDir", path=str(tmp_path), depth=depth))["entries"]
    assert [entry["path"] for entry in entries] == [f"{tmp_path}/{name}" for name in names]


@in_loop
async def test_listing_through_a_link_keeps_the_requested_path(client, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "f").write_text("")
    (tmp_path / "link").symlink_to("real")
    (entry,) = (await client("ListDir", path=f"{tmp_path}/link/"))["entries"]
    assert entry["path"] == f"{tmp_path}/link/f"


@in_loop
async def test_what_cannot_be_listed(client, tmp_path, monkeypatch):
    (tmp_path / "f").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    assert (await failure(client("ListDir", path=f"{tmp_path}/f")))[0] == "invalid_argument"
    assert (await failure(client("ListDir", path=f"{tmp_path}/none")))[0] == "not_found"
    assert (await failure(client("ListDir", path=f"{tmp_path}/loop")))[0] == "failed_precondition"
    monkeypatch.setattr(filesystem, "MAX_LISTED", 2)
    assert len((await client("ListDir", path=str(tmp_path)))["entries"]) == 2
    (tmp_path / "third").mkdir()
    assert (await failure(client("ListDir", path=str(tmp_path))))[0] == "resource_exhausted"
    monkeypatch.setattr(filesystem, "MAX_LISTED", 3)
    (tmp_path / "third" / "fourth").write_text("")
    assert (await failure(client("ListDir", path=str(tmp_path), depth=2)))[0] == (
        "resource_exhausted"
    )


@in_loop
async def test_the_limit_holds_for_all_levels_together(client, tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text("")
    monkeypatch.setattr(filesystem, "MAX_LISTED", 4)
    assert len((await client("ListDir", path=str(tmp_path), depth=2))["entries"]) == 4
    monkeypatch.setattr(filesystem, "MAX_LISTED", 3)
    call = client("ListDir", path=str(tmp_path), depth=2)
    assert (await failure(call))[0] == "resource_exhausted"


@in_loop
async def test_an_empty_directory_has_no_entries(client, tmp_path):
    assert await client("ListDir", path=str(tmp_path)) in ({}, {"entries": []})


@in_loop
async def test_a_polled_watcher(client, tmp_path):
    watcher_id = (await client("CreateWatcher", path=str(tmp_path), recursive=True))["watcherId"]
    assert watcher_id.startswith("w")
    await client("MakeDir", path=str(tmp_path / "sub"))
    (tmp_path / "sub" / "f").write_text("x")
    (tmp_path / "sub" / "f").unlink()
    events = (await client("GetWatcherEvents", watcherId=watcher_id))["events"]
    # The directory is watched before MakeDir answers, so nothing is missing or guessed.
    assert [(event["type"], event["name"]) for event in events if event["name"] != "sub"] == [
        ("EVENT_TYPE_CREATE", "sub/f"),
        ("EVENT_TYPE_WRITE", "sub/f"),
        ("EVENT_TYPE_REMOVE", "sub/f"),
    ]
    assert (await client("GetWatcherEvents", watcherId=watcher_id)).get("events", []) == []
    assert await client("RemoveWatcher", watcherId=watcher_id) == {}
    for method in ("GetWatcherEvents", "RemoveWatcher"):
        assert (await failure(client(method, watcherId=watcher_id)))[0] == "not_found"


@in_loop
async def test_a_streaming_watcher(client, tmp_path):
    async with client.stream("WatchDir", path=str(tmp_path), includeEntry=True) as messages:
        assert await anext(messages) == {"start": {}}
        (tmp_path / "f").write_text("")
        event = (await anext(messages))["filesystem"]
        assert (event["name"], event["type"]) == ("f", "EVENT_TYPE_CREATE")
        assert event["entry"]["path"] == str(tmp_path / "f")


@in_loop
async def test_an_idle_stream_says_that_it_lives(client, tmp_path):
    headers = [("keepalive-ping-interval", "1")]
    async with client.stream("WatchDir", headers, path=str(tmp_path)) as messages:
        assert await anext(messages) == {"start": {}}
        assert await anext(messages) == {"keepalive": {}}


@in_loop
async def test_a_closed_stream_leaves_no_watcher(client, tmp_path):
    for _ in range(70):
        async with client.stream("WatchDir", path=str(tmp_path)) as messages:
            assert await anext(messages) == {"start": {}}


@pytest.mark.parametrize(
    ("name", "code"),
    [("none", "not_found"), ("file", "invalid_argument")],
)
@in_loop
async def test_what_cannot_be_watched(client, tmp_path, name, code):
    (tmp_path / "file").write_text("")
    assert (await failure(client("CreateWatcher", path=str(tmp_path / name))))[0] == code
    async with client.stream("WatchDir", path=str(tmp_path / name)) as messages:
        with pytest.raises(RpcError) as caught:
            await anext(messages)
        assert caught.value.code == code


@in_loop
async def test_network_file_systems_need_leave(client, tmp_path, monkeypatch):
    monkeypatch.setattr(filesystem, "_filesystem_type", lambda _: "fuse.sshfs")
    code, message = await failure(client("CreateWatcher", path=str(tmp_path)))
    assert code == "invalid_argument"
    assert message.startswith(f"cannot watch path on network filesystem: {tmp_path}")
    assert await client("CreateWatcher", path=str(tmp_path), allowNetworkMounts=True)


def test_types_of_file_systems(tmp_path):
    assert filesystem._filesystem_type("/proc/self") == "proc"
    assert filesystem._filesystem_type("/processes") == filesystem._filesystem_type("/")
    for kind in ("nfs", "nfs4", "cifs", "smb3", "fuse", "fuse.sshfs", "fuseblk"):
        assert filesystem._NETWORK_TYPE.fullmatch(kind)
    for kind in ("ext4", "overlay", "9p", "gofer", "tmpfs", "proc", ""):
        assert not filesystem._NETWORK_TYPE.fullmatch(kind)


@in_loop
async def test_many_calls_at_once(client, tmp_path):
    async with asyncio.TaskGroup() as group:
        for index in range(100):
            group.create_task(client("MakeDir", path=str(tmp_path / "shared" / str(index))))
    assert len(list((tmp_path / "shared").iterdir())) == 100
