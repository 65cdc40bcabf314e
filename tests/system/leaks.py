"""Everything an installation may leave on its machine, counted from the outside."""

import subprocess
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def count(instance: str, data_dir: Path) -> dict[str, int]:
    """How many kernel objects and files of this installation exist now, by kind."""
    return {
        "netns": _lines(["ip", "netns", "list"], f"{instance}-"),
        "links": _lines(["ip", "-o", "link"], f": {instance}"),
        "nft": _lines(["nft", "list", "ruleset"], instance),
        "mounts": Path("/proc/self/mounts").read_text().count(f" {data_dir}/"),
        "loop devices": _lines(["losetup", "--list", "--noheadings"], f"{data_dir}/"),
        "cgroups": _cgroups(instance),
        "processes": _processes(str(data_dir)),
        "slots": len(list((data_dir / "slots").glob("*"))),
        "runsc files": len(list((data_dir / "runsc").glob("*"))),
    }


def _lines(command: list[str], part: str) -> int:
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sum(part in line for line in printed.splitlines())


def _cgroups(instance: str) -> int:
    """Groups of the instance in every v1 hierarchy, or in the one of v2."""
    found = 0
    for hierarchy in (CGROUPS, *CGROUPS.iterdir()):
        try:
            found += sum(entry.is_dir() for entry in (hierarchy / instance).iterdir())
        except OSError:  # not there, or gone while we looked
            continue
    return found


def _processes(part: str) -> int:
    found = 0
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = cmdline.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended while we looked
            continue
        found += "runsc" in text and part in text
    return found
