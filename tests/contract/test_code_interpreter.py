"""The unmodified e2b-code-interpreter client against our server in the shipped template."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from e2b import NotFoundException, TimeoutException
from e2b_code_interpreter import Sandbox

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def shared(interpreter: str) -> Iterator[Sandbox]:
    sandbox = Sandbox.create(interpreter, timeout=1200)
    yield sandbox
    sandbox.kill()


@pytest.fixture
def make_code(interpreter: str) -> Iterator[Callable[..., Sandbox]]:
    """More sandboxes, which end with the test."""
    made: list[Sandbox] = []

    def create(**options: Any) -> Sandbox:
        sandbox = Sandbox.create(interpreter, timeout=300, **options)
        made.append(sandbox)
        return sandbox

    yield create
    for sandbox in made:
        sandbox.kill()


def test_state_output_and_errors(shared: Sandbox) -> None:
    seen: list[str] = []
    shared.run_code("x = 1")
    execution = shared.run_code(
        "x += 1; print('said'); x", on_stdout=lambda line: seen.append(line.line)
    )
    assert execution.text == "2"
    assert execution.logs.stdout == seen == ["said\n"]
    failed = shared.run_code("1/0")
    assert failed.error is not None
    assert (failed.error.name, failed.error.value) == ("ZeroDivisionError", "division by zero")
    assert failed.execution_count == execution.execution_count + 1


def test_contexts(shared: Sandbox) -> None:
    context = shared.create_code_context(cwd="/root")
    listed = shared.list_code_contexts()
    assert listed[-1].id == context.id
    assert {"python", "javascript"} <= {c.language for c in listed}
    shared.run_code("only_here = 1", context=context)
    assert shared.run_code("import os; os.getcwd()", context=context).text == "/root"
    shared.restart_code_context(context.id)
    gone = shared.run_code("only_here", context=context)
    assert gone.error is not None
    assert gone.error.name == "NameError"
    shared.remove_code_context(context.id)
    with pytest.raises(NotFoundException):
        shared.run_code("1", context=context)


def test_a_timeout_interrupts_the_code(shared: Sandbox) -> None:
    with pytest.raises(TimeoutException):
        shared.run_code("import time; time.sleep(300)", timeout=2)
    assert shared.run_code("1 + 1", timeout=60).text == "2"


def test_variables_of_a_secured_sandbox(make_code: Callable[..., Sandbox]) -> None:
    sandbox = make_code(envs={"MINE": "a"}, secure=True)
    look = "import os; os.environ['MINE'], os.environ['E2B_SANDBOX_ID']"
    assert sandbox.run_code(look).text == repr(("a", sandbox.sandbox_id))
    assert sandbox.run_code("import os; os.environ['MINE']", envs={"MINE": "b"}).text == "b"
    assert sandbox.run_code("import os; os.environ['MINE']").text == "a"


def test_kernels_outlive_pause_and_differ_in_clones(make_code: Callable[..., Sandbox]) -> None:
    sandbox = make_code(envs={"MINE": "a"})
    sandbox.run_code("import random, numpy; kept = [1, 2]")
    sandbox.pause()
    again = Sandbox.connect(sandbox.sandbox_id)
    assert again.run_code("kept").text == "[1, 2]"

    snapshot = again.create_snapshot()
    twins = [
        Sandbox.create(snapshot.snapshot_id, timeout=300, envs={"MINE": name})
        for name in ("one", "two")
    ]
    try:
        draw = "import os; kept, random.random(), numpy.random.random(), os.environ['MINE']"
        texts = [twin.run_code(draw).text or "" for twin in twins]
    finally:
        for twin in twins:
            twin.kill()
    first, second = (eval(text, {"np": _Numpy}) for text in texts)
    assert first[0] == second[0] == [1, 2]
    assert first[1] != second[1]
    assert first[2] != second[2]
    assert (first[3], second[3]) == ("one", "two")


class _Numpy:
    """numpy writes its numbers as np.float64(0.5)."""

    float64 = float


def test_fresh_sandboxes_draw_different_numbers(make_code: Callable[..., Sandbox]) -> None:
    draw = "import random, numpy; print(random.random(), numpy.random.random())"
    pairs = ["".join(make_code().run_code(draw).logs.stdout).split() for _ in range(2)]
    assert pairs[0][0] != pairs[1][0]
    assert pairs[0][1] != pairs[1][1]


@pytest.mark.parametrize(
    "victim", ["uvicorn main:app", "ipykernel_launcher", "/opt/code-interpreter/"]
)
def test_what_is_killed_comes_back(make_code: Callable[..., Sandbox], victim: str) -> None:
    sandbox = make_code()
    sandbox.run_code("x = 1")
    # The shell names the victim as well, so it may end itself.
    sandbox.commands.run(f"nohup sh -c \"pkill -9 -f '{victim}'\" >/dev/null 2>&1 &", user="root")
    until = time.monotonic() + 60
    while _text(sandbox, "'x' in globals()") != "False":
        assert time.monotonic() < until
        time.sleep(0.2)
    assert sandbox.run_code("x = 2; x").text == "2"


def _text(sandbox: Sandbox, code: str) -> str | None:
    """None while nothing answers on the server's port, too."""
    try:
        return sandbox.run_code(code, timeout=30).text
    except Exception:
        return None


def test_a_dead_kernel_is_told(shared: Sandbox) -> None:
    context = shared.create_code_context()
    died = shared.run_code("import os; os._exit(1)", context=context)
    assert died.error is not None
    assert died.error.name == "ContextRestarting"
    assert shared.run_code("1", context=context).text == "1"


def test_a_flood_arrives_whole(shared: Sandbox) -> None:
    count = 0

    def add(line: Any) -> None:
        nonlocal count
        count += len(line.line)

    shared.run_code("for _ in range(64): print('x' * ((1 << 20) - 1))", on_stdout=add, timeout=120)
    assert count == 64 << 20
