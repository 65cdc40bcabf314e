"""`alcove node check`: the conformance kit as a command."""

import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from alcove.cli.main import main
from alcove.node import conformance
from alcove.node.drivers.check import CHECKS
from alcove.node.settings import Settings
from system import leaks

NETWORK = "10.196.0.0/24"


def check(data_dir: Path, *options: str) -> Result:
    command = ["node", "check", "--data-dir", str(data_dir), "--slot-network", NETWORK]
    return CliRunner().invoke(main, [*command, *options], catch_exceptions=False)


def test_every_promise_is_tried_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    result = check(tmp_path, "--driver", "fake", "--format", "json")
    answer = json.loads(result.stdout)
    assert (result.exit_code, answer["ok"], answer["driver"]) == (0, True, "fake")
    assert [r["name"] for r in answer["results"]] == [promise.__name__ for promise in CHECKS]
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_without_an_installation_no_directory_is_left(tmp_path: Path) -> None:
    result = check(tmp_path / "none", "--driver", "fake")
    assert result.exit_code == 0
    assert "kept  a damaged snapshot starts nothing" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_it_never_works_under_the_name_of_the_node_it_is_for(tmp_path: Path) -> None:
    real = Settings(data_dir=tmp_path, instance="alcove")
    apart = conformance.apart(real)
    assert apart.data_dir == tmp_path / "check"
    assert apart.instance != real.instance
    assert conformance.apart(Settings(data_dir=tmp_path / "other")).instance != apart.instance
    Settings.model_validate(apart.model_dump())


def test_a_driver_that_cannot_work_here_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = check(tmp_path, "--driver", "gvisor")
    assert result.exit_code == 1
    assert "runsc is not installed" in result.stderr


@pytest.mark.root
@pytest.mark.runsc
@pytest.mark.system
@pytest.mark.timeout(300)
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("runsc") is None, reason="needs root and runsc"
)
def test_gvisor_keeps_its_promises_in_an_instance_of_its_own(tmp_path: Path) -> None:
    result = check(tmp_path, "--driver", "gvisor", "--format", "json")
    broken = [r for r in json.loads(result.stdout)["results"] if not r["ok"]]
    assert (result.exit_code, broken) == (0, [])
    apart = conformance.apart(Settings(data_dir=tmp_path))
    assert not any(leaks.count(apart.instance, apart.data_dir).values())
