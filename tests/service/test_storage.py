"""The object store: one kit for a directory and for an S3 that checks signatures."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from alcove.storage import Storage, StorageError

BUCKET = "alcove"
_FIRST_ACTIONS = "3"
"""So many calls moto takes without asking who makes them; then it checks every signature."""


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """Variables of the environment by which clients find the server and are let in."""
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        env=os.environ | {"INITIAL_NO_AUTH_ACTION_COUNT": _FIRST_ACTIONS},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait(port)
        where = {"endpoint_url": url, "region_name": "us-east-1"}
        nobody = {"aws_access_key_id": "x", "aws_secret_access_key": "y"}
        iam = boto3.client("iam", **where, **nobody)
        iam.create_user(UserName="alcove")
        key = iam.create_access_key(UserName="alcove")["AccessKey"]
        allowed = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
        iam.put_user_policy(UserName="alcove", PolicyName="all", PolicyDocument=policy)
        given = {
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
        }
        names = {name.lower(): value for name, value in given.items()}
        boto3.client("s3", **where, **names).create_bucket(Bucket=BUCKET)
        region = {"AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true"}
        yield given | region | {"AWS_ENDPOINT_URL": url}
    finally:
        server.terminate()
        server.wait()


def _wait(port: int) -> None:
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=2).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    pytest.fail("moto does not answer")


@pytest.fixture(params=["directory", "s3"])
def make(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Storage]:
    """What makes the same store each time, as control and a node make their own."""
    if request.param == "directory":
        return lambda: Storage("", tmp_path)
    for name, value in request.getfixturevalue("s3").items():
        monkeypatch.setenv(name, value)
    return lambda: Storage(f"s3://{BUCKET}/{tmp_path.name}", tmp_path)


async def parts(*contents: bytes) -> AsyncIterator[bytes]:
    for content in contents:
        yield content


async def content(storage: Storage, key: str) -> bytes:
    return b"".join([chunk async for chunk in storage.get(key)])


def test_what_is_put_can_be_had_elsewhere(make: Callable[[], Storage]) -> None:
    async def scenario() -> None:
        storage, other = make(), make()
        await storage.put("build-files/team/a.tar", parts(b"one", b"two"))
        assert await other.size("build-files/team/a.tar") == 6
        assert await content(other, "build-files/team/a.tar") == b"onetwo"
        await other.put("build-files/team/a.tar", parts(b"newer"))
        assert await content(storage, "build-files/team/a.tar") == b"newer"
        await storage.put("empty", parts())
        assert await other.size("empty") == 0

    asyncio.run(scenario())


def test_large_objects_go_in_parts(make: Callable[[], Storage]) -> None:
    async def scenario() -> None:
        storage = make()
        chunks = [bytes([number]) * (1 << 20) for number in range(20)]
        await storage.put("large", parts(*chunks))
        assert await storage.size("large") == 20 << 20
        assert await content(storage, "large") == b"".join(chunks)

    asyncio.run(scenario())


def test_what_is_cut_off_is_not_there(make: Callable[[], Storage]) -> None:
    async def cut_off() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield bytes(1 << 20)
        raise ConnectionResetError("gone")

    async def scenario() -> None:
        storage = make()
        await storage.put("kept", parts(b"before"))
        for key in ("kept", "new"):
            with pytest.raises(ConnectionResetError):
                await storage.put(key, cut_off())
        assert await content(storage, "kept") == b"before"
        assert await storage.size("new") is None

    asyncio.run(scenario())


def test_what_is_not_there(make: Callable[[], Storage]) -> None:
    async def scenario() -> None:
        storage = make()
        assert await storage.size("nothing") is None
        with pytest.raises(StorageError, match="nothing is not in the object store"):
            await content(storage, "nothing")
        await storage.remove("nothing")
        await storage.put("something", parts(b"x"))
        await storage.remove("something")
        assert await storage.size("something") is None

    asyncio.run(scenario())


def test_what_is_old(make: Callable[[], Storage]) -> None:
    async def scenario() -> None:
        storage = make()
        for key in ("build-files/a/1.tar", "build-files/b/2.tar", "other/3"):
            await storage.put(key, parts(b"x"))
        now = datetime.now(UTC)
        found = await storage.older_than("build-files", now + timedelta(minutes=1))
        assert sorted(found) == ["build-files/a/1.tar", "build-files/b/2.tar"]
        assert await storage.older_than("build-files", now - timedelta(minutes=1)) == []

    asyncio.run(scenario())


def test_a_wrong_secret_is_refused_in_a_line(
    s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (s3 | {"AWS_SECRET_ACCESS_KEY": "wrong"}).items():
        monkeypatch.setenv(name, value)

    async def scenario() -> None:
        storage = Storage(f"s3://{BUCKET}/x", tmp_path)
        for call in (storage.size("key"), storage.put("key", parts(b"x")), storage.remove("key")):
            with pytest.raises(StorageError) as caught:
                await call
            assert "\n" not in str(caught.value)
            assert "wrong" not in str(caught.value)

    asyncio.run(scenario())
