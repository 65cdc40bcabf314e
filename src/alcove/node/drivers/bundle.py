"""The OCI bundle of a sandbox: config.json as pure data, the same for every sandbox of an image.

Nothing in it depends on the sandbox that will live there, because one prepared container is handed
to whichever sandbox comes next; only the place (network namespace, control group) is named.
"""

from typing import Any

from alcove.node.drivers.driver import (
    AGENT_ARGV,
    AGENT_ENV,
    AGENT_MOUNT,
    VOLUMES_MOUNT,
    Image,
    Place,
)

OPEN_FILES = 1 << 20
OOM_SCORE_ADJ = 500
"""Sandboxes end before anything of the host when the machine runs out of memory."""

CAPABILITIES = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_CHROOT",
    "CAP_SYS_NICE",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
]
"""Root inside is root of a small machine: mounts, debuggers, sudo and apt work. gVisor emulates
them all; on the host the sandbox's process has them only in a user namespace of its own. Raw
sockets (CAP_NET_RAW) and kernel modules are left out."""


def config(place: Place, image: Image) -> dict[str, Any]:
    """config.json for one place."""
    return {
        "ociVersion": "1.0.2",
        "hostname": "sandbox",
        "root": {"path": str(image.rootfs), "readonly": False},
        "process": _process(),
        "mounts": _mounts(place, image),
        "linux": {
            "cgroupsPath": "/" + place.cgroup.strip("/"),
            "namespaces": [
                {"type": "pid"},
                {"type": "ipc"},
                {"type": "uts"},
                {"type": "mount"},
                {"type": "network", "path": str(place.netns)},
            ],
        },
    }


def _process() -> dict[str, Any]:
    return {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": list(AGENT_ARGV),
        "env": [f"{name}={value}" for name, value in AGENT_ENV.items()],
        "cwd": "/",
        "noNewPrivileges": False,
        "oomScoreAdj": OOM_SCORE_ADJ,
        # None inheritable: what a user executes must not gain any from a file's own set.
        "capabilities": {
            **dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
            "inheritable": [],
        },
        "rlimits": [
            {"type": "RLIMIT_NOFILE", "soft": OPEN_FILES, "hard": OPEN_FILES},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        ],
    }


def _mounts(place: Place, image: Image) -> list[dict[str, Any]]:
    shared_memory = "/dev/shm"  # noqa: S108 - the guest's, not ours
    return [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
        {
            "destination": shared_memory,
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["mode=1777", f"size={(image.memory_mib << 20) // 2}"],
        },
        {
            "destination": AGENT_MOUNT,
            "type": "bind",
            "source": str(image.agent),
            "options": ["bind", "ro"],
        },
        {
            "destination": VOLUMES_MOUNT,
            "type": "bind",
            "source": str(place.volumes),
            # With what is mounted there, should the container be made again.
            "options": ["rbind", "rw"],
        },
    ]
