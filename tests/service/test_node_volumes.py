"""Volumes of a node with the fake driver: the node's calls and the content API."""

import asyncio
from typing import Any

import httpx
import pytest
from test_node import Scene, play, scene

VOLUME = "22222222-2222-4222-8222-222222222222"
PATH = f"/v1/volumes/{VOLUME}"
SPEC = {"volume_id": VOLUME, "size_mib": 64, "inodes": 1000}
OWNER = {"uid": 0, "gid": 0}


async def make(s: Scene) -> None:
    answer = await s.api.put(PATH, json=SPEC)
    assert answer.status_code == 200, answer.text
    assert answer.json()["size_mib"] == 64


async def code(call: Any) -> tuple[int, str]:
    answer: httpx.Response = await call
    return answer.status_code, answer.json()["code"]


def test_a_volume_is_made_used_and_removed(tmp_path):
    async def act() -> None:
        async with scene(tmp_path, build=False) as s:
            await make(s)
            await make(s)
            answer = await s.api.put(f"{PATH}/file?path=/a/b.txt&force=true", content=b"hello")
            assert answer.status_code == 201, answer.text
            shown = answer.json()
            assert (shown["path"], shown["size"], shown["uid"]) == ("/a/b.txt", 5, 9090)
            answer = await s.api.get(f"{PATH}/file", params={"path": "a/b.txt"})
            assert (answer.status_code, answer.content) == (200, b"hello")
            assert answer.headers["Content-Length"] == "5"
            params = {"path": "/new", "mode": 0o750, **OWNER}
            answer = await s.api.post(f"{PATH}/dir", params=params)
            assert (answer.status_code, answer.json()["mode"]) == (201, 0o750)
            answer = await s.api.get(f"{PATH}/dir", params={"path": "/", "depth": 2})
            assert [entry["path"] for entry in answer.json()] == ["/a", "/a/b.txt", "/new"]
            answer = await s.api.patch(f"{PATH}/path?path=/new", json={"mode": 0o700})
            assert answer.json()["mode"] == 0o700
            assert (await s.api.delete(f"{PATH}/path?path=/a")).status_code == 204
            assert (await s.api.get(f"{PATH}/path?path=/a")).status_code == 404
            assert (await s.api.delete(PATH)).status_code == 204
            assert (await s.api.delete(PATH)).status_code == 204
            assert (await s.api.get(PATH)).status_code == 404
            assert (await s.api.get(f"{PATH}/dir?path=/")).status_code == 404
            assert list((tmp_path / "volumes").iterdir()) == []

    play(act)


def test_what_is_malformed_is_refused_in_the_words_of_the_contract(tmp_path):
    async def act() -> None:
        async with scene(tmp_path, build=False) as s:
            await make(s)
            bad = (400, "INVALID_REQUEST")
            for query in ("", "path=", "path=%00", "path=/a&uid=x", "path=/a&force=perhaps"):
                assert await code(s.api.put(f"{PATH}/file?{query}", content=b"")) == bad, query
            wrong_depth = await code(s.api.get(f"{PATH}/dir?path=/&depth=0"))
            assert wrong_depth == (400, "DEPTH_OUT_OF_RANGE")
            assert await code(s.api.patch(f"{PATH}/path?path=/", json={"mode": "7"})) == bad
            assert await code(s.api.patch(f"{PATH}/path?path=/", content=b"{")) == bad
            large = b'{"a": "' + b"x" * 70_000 + b'"}'
            assert await code(s.api.patch(f"{PATH}/path?path=/", content=large)) == bad
            assert await code(s.api.delete(f"{PATH}/path?path=/")) == (400, "CANNOT_DELETE_ROOT")
            for wrong in ({}, {"size_mib": 0, "inodes": 5}, {"size_mib": "1", "inodes": 5}):
                assert (await s.api.put(PATH, json=wrong)).status_code == 400, wrong
            answer = await s.api.put("/v1/volumes/..%2f..%2fetc", json={"size_mib": 1, "inodes": 1})
            assert answer.status_code in {400, 404}

    play(act)


def test_a_volume_in_use_is_not_removed(tmp_path):
    async def act() -> None:
        async with scene(tmp_path, build=False) as s:
            await make(s)
            sending, received = asyncio.Event(), asyncio.Event()

            async def slowly():
                yield b"first"
                received.set()
                await sending.wait()
                yield b"second"

            upload = asyncio.ensure_future(s.api.put(f"{PATH}/file?path=f", content=slowly()))
            await received.wait()
            answer = await s.api.delete(PATH)
            assert (answer.status_code, answer.json()["error_code"]) == (409, "conflict")
            sending.set()
            assert (await upload).json()["size"] == len(b"firstsecond")
            assert (await s.api.delete(PATH)).status_code == 204

    play(act)


def test_volumes_survive_the_node_and_removals_are_finished(tmp_path):
    async def act() -> None:
        async with scene(tmp_path, build=False) as s:
            await make(s)
            await s.api.put(f"{PATH}/file?path=f", content=b"kept")
        (tmp_path / "volumes" / f".removed-{VOLUME}-0").mkdir()
        async with scene(tmp_path, build=False) as s:
            assert (await s.api.get(f"{PATH}/file?path=f")).content == b"kept"
            assert [entry.name for entry in (tmp_path / "volumes").iterdir()] == [VOLUME]

    play(act)


@pytest.mark.parametrize("broken", ["", "{", '{"volume_id": 1}'])
def test_a_record_that_cannot_be_read_is_not_taken_for_none(tmp_path, broken):
    async def act() -> None:
        async with scene(tmp_path, build=False) as s:
            await make(s)
            (tmp_path / "volumes" / VOLUME / "volume.json").write_text(broken)
            assert (await s.api.get(f"{PATH}/dir?path=/")).status_code == 404
            assert (tmp_path / "volumes" / VOLUME / "files").is_dir()

    play(act)
