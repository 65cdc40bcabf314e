"""The tracked files of this repository, as the house tests see them."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "alcove"


def tracked(*patterns: str) -> list[Path]:
    """Files git tracks or would track, that match one of the patterns (all without any)."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [path for line in listed.splitlines() if (path := ROOT / line).is_file()]


def python_files() -> list[Path]:
    return [path for path in tracked("src/**/*.py") if path.is_relative_to(SOURCE)]
