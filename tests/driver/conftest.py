"""The guest bundle, a small root file system, and places in which to run them."""

import asyncio
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import rig

from alcove.node import pidfd
from alcove.node.agent_bundle import ensure_bundle
from alcove.node.cgroups import Cgroup
from alcove.node.drivers.driver import Place

_slots = itertools.count(2000)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    pidfd.become_subreaper()
    # Short: the control socket's path is in it.
    root = Path(tmp_path_factory.mktemp("d"))
    yield root
    asyncio.run(Cgroup(rig.INSTANCE).remove())
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def agent(root: Path) -> Path:
    return asyncio.run(ensure_bundle(root))


@pytest.fixture(scope="session")
def probe(root: Path, agent: Path) -> Path:
    return rig.make_agent(root, agent)


@pytest.fixture(scope="session")
def rootfs(root: Path) -> Path:
    return rig.make_rootfs(root)


@pytest.fixture
def make_place(root: Path) -> Iterator[Callable[[], Place]]:
    made = []

    def make() -> Place:
        made.append(rig.make_place(root, next(_slots)))
        return made[-1]

    yield make

    async def drop() -> None:
        for place in made:
            await rig.drop_place(place)

    asyncio.run(drop())
