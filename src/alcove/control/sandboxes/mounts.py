"""Volumes in sandboxes: which ones a request names, where they may be, who has them."""

import posixpath
from collections.abc import Mapping, Sequence

from alcove.control.db import Tx
from alcove.control.errors import InvalidRequestError
from alcove.control.sandboxes import store
from alcove.control.volumes import store as volumes
from alcove.wire.ids import NodeId, SandboxId, TeamId, VolumeId

MAX_MOUNTS = 32
_MAX_PATH_BYTES = 1024
_NOT_THERE = ("/proc", "/sys", "/dev", "/.alcove", "/.alcove-volumes")
"""What the sandbox itself needs is not hidden under a volume."""


def read_mounts(given: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Names of volumes by path. Raises InvalidRequestError (contract e2b 2.4)."""
    if len(given) > MAX_MOUNTS:
        raise InvalidRequestError(f"volumeMounts may have at most {MAX_MOUNTS} entries")
    wanted: dict[str, str] = {}
    for name, path in given:
        check_path(path)
        if path in wanted:
            raise InvalidRequestError(f"volumeMounts: path '{path}' is given more than once")
        wanted[path] = name
    return wanted


def check_path(path: str) -> None:
    shown = path[:200]
    if not path.startswith("/") or len(path.encode()) > _MAX_PATH_BYTES:
        raise InvalidRequestError(f"volumeMounts: path '{shown}' must be absolute")
    if posixpath.normpath(path) != path or path.startswith("//"):
        raise InvalidRequestError(
            f"volumeMounts: path '{shown}' must be clean: without '.', '..', '//' and a '/' at "
            "its end"
        )
    if path == "/" or any(path == one or path.startswith(f"{one}/") for one in _NOT_THERE):
        raise InvalidRequestError(f"volumeMounts: nothing can be mounted at '{shown}'")


async def resolve(
    tx: Tx, team_id: TeamId, wanted: Mapping[str, str]
) -> tuple[dict[str, dict[str, str]], NodeId | None]:
    """The mounts of a row, and the node that has all the volumes (None: there are none).

    Hold the team's lock: a volume that is found here is not deleted before the row is written.
    """
    if not wanted:
        return {}, None
    found = {one.name: one for one in await volumes.named(tx, team_id, list(wanted.values()))}
    for name in wanted.values():
        if name not in found:
            raise InvalidRequestError(f"Volume '{name[:128]}' not found")
    if len({volume.node_id for volume in found.values()}) > 1:
        raise InvalidRequestError(
            "volumeMounts: these volumes are on different nodes and cannot be used together"
        )
    mounts = {path: {"id": found[name].id, "name": name} for path, name in wanted.items()}
    return mounts, next(iter(found.values())).node_id


async def mounted_by(tx: Tx, team_id: TeamId, volume_id: VolumeId) -> list[SandboxId]:
    """The team's sandboxes that run, or are paused, with this volume."""
    return [
        sandbox_id
        for sandbox_id, mounts in await store.mounts_of(tx, team_id)
        if any(mount["id"] == volume_id for mount in mounts.values())
    ]
