"""config.json of a sandbox: what it grants and what it must not."""

import json
from dataclasses import replace
from pathlib import Path

from alcove.node.drivers.bundle import config
from alcove.node.drivers.driver import AGENT_ARGV, Image, Place

PLACE = Place(
    slot=3,
    name="nd-3",
    directory=Path("/slots/3"),
    netns=Path("/run/netns/nd-3"),
    veth="nd3",
    address="10.231.0.3",
    cgroup="nd/3",
    disk=Path("/slots/3/disk"),
    console=Path("/slots/3/console.log"),
)
IMAGE = Image("build", Path("/rootfs"), Path("/agent"), None, vcpu_count=2, memory_mib=512)


def test_it_is_json_and_names_the_place() -> None:
    made = json.loads(json.dumps(config(PLACE, IMAGE)))
    network = [n for n in made["linux"]["namespaces"] if n["type"] == "network"]
    assert network == [{"type": "network", "path": "/run/netns/nd-3"}]
    assert made["linux"]["cgroupsPath"] == "/nd/3"
    assert made["process"]["args"] == list(AGENT_ARGV)


def test_only_the_agent_which_cannot_be_written_and_volumes_come_from_the_host() -> None:
    binds = [m for m in config(PLACE, IMAGE)["mounts"] if m["type"] == "bind"]
    assert [(m["source"], m["destination"]) for m in binds] == [
        ("/agent", "/.alcove"),
        (str(PLACE.disk / "volumes"), "/.alcove-volumes"),
    ]
    assert "ro" in binds[0]["options"]


def test_nothing_of_a_sandbox_is_in_it() -> None:
    other = replace(IMAGE, build_id="another", snapshot=Path("/snapshot"))
    assert config(PLACE, other) == config(PLACE, IMAGE)


def test_root_inside_may_administer_but_not_forge_packets_or_load_modules() -> None:
    granted = set(config(PLACE, IMAGE)["process"]["capabilities"]["effective"])
    assert {"CAP_SETUID", "CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"} <= granted
    assert not granted & {"CAP_NET_RAW", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_BPF"}


def test_nothing_executed_by_a_user_inherits_a_capability() -> None:
    assert config(PLACE, IMAGE)["process"]["capabilities"]["inheritable"] == []


def test_files_in_memory_take_at_most_half_of_it() -> None:
    (shared,) = [m for m in config(PLACE, IMAGE)["mounts"] if m["destination"] == "/dev/shm"]
    assert f"size={256 << 20}" in shared["options"]


def test_every_namespace_is_its_own() -> None:
    kinds = {n["type"] for n in config(PLACE, IMAGE)["linux"]["namespaces"]}
    assert kinds == {"pid", "ipc", "uts", "mount", "network"}
