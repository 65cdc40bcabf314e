"""Contexts, health, refusals, and what is left when something is killed (contract e2b 6.1)."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.interpreter_world import Agent, Interpreter, eventually, interpreter


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    with Agent().serving() as agent:
        yield agent


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, agent: Agent) -> Iterator[Interpreter]:
    with interpreter(tmp_path_factory.mktemp("contexts"), agent) as world:
        yield world


def test_the_first_execution_of_a_warm_context_is_number_one(world: Interpreter) -> None:
    first = world.execute("_, __, 'In' in globals() and len(In)")
    assert (first.count, first.text) == (1, "('', '', 2)")


def test_contexts_are_listed_in_order_and_go(world: Interpreter, tmp_path: Path) -> None:
    first = world.contexts()
    assert [c["language"] for c in first] == ["python"]
    made = world.create_context(language=" Python ", cwd=str(tmp_path))
    assert made["language"] == "python"
    assert made["cwd"] == str(tmp_path)
    assert world.contexts() == [*first, made]
    assert world.execute("import os; os.getcwd()", context_id=made["id"]).text == str(tmp_path)
    kernels = world.kernels()
    assert world.request("DELETE", f"/contexts/{made['id']}") == (200, "null")
    assert world.contexts() == first
    eventually(lambda: len(world.kernels()) == len(kernels) - 1)


def test_contexts_do_not_share_state(world: Interpreter) -> None:
    made = world.create_context()
    world.execute("only_here = 1")
    error = world.execute("only_here", context_id=made["id"]).error
    assert error is not None
    assert error["value"] == "name 'only_here' is not defined"
    world.request("DELETE", f"/contexts/{made['id']}")


def test_default_contexts(world: Interpreter) -> None:
    world.execute("mine = 5")
    assert world.execute("mine", language="PYTHON").text == "5"
    assert world.execute("mine", context_id="default").text == "5"
    assert world.execute("mine", context_id=world.contexts()[0]["id"]).text == "5"


def test_a_restart_clears_the_state_and_ends_what_runs(world: Interpreter) -> None:
    made = world.create_context()
    world.execute("x = 1", context_id=made["id"])
    with world.executing(
        "import time; print('on', flush=True); time.sleep(1000)", context_id=made["id"]
    ) as running:
        while b'"on' not in running.readline():
            pass
        assert world.request("POST", f"/contexts/{made['id']}/restart") == (200, "null")
        rest = [json.loads(line) for line in running]
        assert [line.get("name") for line in rest if line["type"] == "error"] == [
            "ContextRestarting"
        ]
    after = world.execute("x", context_id=made["id"])
    assert after.error is not None
    assert after.error["name"] == "NameError"
    assert (after.count, after.stderr) == (1, "")
    world.request("DELETE", f"/contexts/{made['id']}")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        (
            "POST",
            "/execute",
            {"code": "1", "context_id": "a", "language": "python"},
            400,
            "Only one of context_id or language can be provided",
        ),
        ("POST", "/execute", {"code": "1", "context_id": "no"}, 404, "Context no not found"),
        ("DELETE", "/contexts/no", None, 404, "Context no not found"),
        ("POST", "/contexts/no/restart", None, 404, "Context no not found"),
        ("POST", "/execute", {"code": "1", "language": "cobol"}, 500, "'cobol' is not supported"),
        ("POST", "/contexts", {"language": "cobol"}, 500, "'cobol' is not supported"),
        ("POST", "/contexts", {"cwd": "/no/such/place"}, 500, "/no/such/place"),
        ("POST", "/execute", b"{", 422, "not valid JSON"),
        ("POST", "/execute", b"[" * 100_000, 422, "not valid JSON"),
        ("POST", "/execute", [], 422, "must be a JSON object"),
        ("POST", "/execute", {"code": 1}, 422, "code"),
        ("POST", "/execute", {"code": "1", "env_vars": {"A": 1}}, 422, "env_vars.A"),
        ("POST", "/execute", {"code": "1", "env_vars": {"A=B": "1"}}, 422, "A=B"),
    ],
)
def test_refusals_are_plain_text(
    world: Interpreter, method: str, path: str, body: object, status: int, words: str
) -> None:
    before = world.contexts()
    answered, text = world.request(method, path, body)
    assert (answered, words in text) == (status, True), text
    assert world.contexts() == before, "nothing is left of it"


def test_a_browser_may_ask_from_anywhere(world: Interpreter) -> None:
    headers = {
        "Origin": "https://a.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-anything",
    }
    words = [word for name, value in headers.items() for word in ("-H", f"{name}: {value}")]
    asked = subprocess.run(
        ["curl", "-si", "-X", "OPTIONS", *words, f"http://127.0.0.1:{world.port}/execute"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.lower()
    assert "access-control-allow-origin: *" in asked
    assert "x-anything" in asked


def test_a_killed_server_leaves_contexts_and_no_kernels(tmp_path: Path, agent: Agent) -> None:
    with interpreter(tmp_path, agent) as world:
        made = world.create_context()
        world.execute("x = 1", context_id=made["id"])
        listed = world.contexts()
        kernels = world.kernels()
        assert len(kernels) == 2
        world.kill()
        world.start()
        world.wait()
        eventually(lambda: not kernels & world.kernels())
        assert world.contexts() == listed
        after = world.execute("x", context_id=made["id"])
        assert "was restarted" in after.stderr
        assert after.error is not None
        assert after.error["name"] == "NameError"
        assert world.execute("x = 1; x").text == "1"
        assert len(world.kernels()) == 2


def test_a_stopped_server_leaves_nothing(tmp_path: Path, agent: Agent) -> None:
    with interpreter(tmp_path, agent) as world:
        assert world.kernels()
        world.stop()
        eventually(lambda: not world.kernels())
        world.start()
        world.wait()


def test_nothing_moves_in_an_idle_server(world: Interpreter) -> None:
    world.execute("1")
    time.sleep(1)
    assert world.process is not None
    status = Path(f"/proc/{world.process.pid}/status")

    def switches() -> int:
        lines = status.read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)

    before = switches()
    time.sleep(3)
    assert switches() - before <= 3, "the main thread of the server woke up without a reason"
