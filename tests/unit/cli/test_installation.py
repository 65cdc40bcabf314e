"""Options of an installation: stored once, changed knowingly, readable by their owner only."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from alcove.cli.environment import env_command, exports
from alcove.cli.installation import Installation, Options, choose, load, require
from alcove.cli.output import EXIT_NOT_RUNNING, CliError
from alcove.cli.server import status_command


def test_first_choice_is_stored_and_the_next_says_what_it_changes(tmp_path: Path) -> None:
    first, changed = choose(tmp_path, {"api_port": 4000, "domain": None})
    assert (first.options.api_port, first.options.domain, changed) == (
        4000,
        Options().domain,
        [],
    )
    first.save()
    assert load(tmp_path) == first
    same, changed = choose(tmp_path, {"api_port": None})
    assert (same, changed) == (first, [])
    other, changed = choose(tmp_path, {"api_port": 5000})
    assert other.options.api_port == 5000
    assert changed == ["api_port: 4000 -> 5000"]


def test_secrets_are_private_and_made_once(tmp_path: Path) -> None:
    installation = Installation(tmp_path, Options())
    installation.save()
    key = installation.cluster_key()
    installation.save()
    assert installation.cluster_key() == key
    assert len(bytes.fromhex(key)) == 32
    assert installation.cluster_key_file.stat().st_mode & 0o777 == 0o600


def test_a_newer_versions_options_are_ignored(tmp_path: Path) -> None:
    Installation(tmp_path, Options()).save()
    stored = json.loads((tmp_path / "config.json").read_text()) | {"from_the_future": 1}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert load(tmp_path) == Installation(tmp_path, Options())


def test_damaged_options_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CliError) as caught:
        load(tmp_path)
    assert "config.json" in caught.value.message
    assert caught.value.fix


def test_no_installation_is_exit_code_3(tmp_path: Path) -> None:
    with pytest.raises(CliError) as caught:
        require(tmp_path)
    assert caught.value.exit_code == EXIT_NOT_RUNNING
    for command in (env_command, status_command):
        result = CliRunner().invoke(command, ["--data-dir", str(tmp_path)])
        assert result.exit_code == EXIT_NOT_RUNNING


def test_exports_survive_a_shell() -> None:
    assert exports({"A": "x y", "B": "it's"}) == "export A='x y'\nexport B='it'\"'\"'s'"
