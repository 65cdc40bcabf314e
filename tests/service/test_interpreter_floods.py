"""More output than anybody can hold: it slows the kernel down, and none of it is lost."""

import json
import time
from collections.abc import Iterator

import pytest

from service.interpreter_world import Agent, Interpreter, interpreter

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interpreter]:
    with (
        Agent().serving() as agent,
        interpreter(tmp_path_factory.mktemp("floods"), agent) as world,
    ):
        yield world


def test_a_slow_client_slows_the_kernel(world: Interpreter) -> None:
    code = "for i in range(40): print(str(i) + 'x' * (1 << 20), flush=True)"
    with world.executing(code) as answer:
        time.sleep(3)  # the kernel could have printed all of it many times over
        before = world.memory_mib()
        received = [json.loads(line) for line in answer]
    assert before < 150
    text = "".join(line["text"] for line in received if line["type"] == "stdout")
    assert len(text) == sum(len(str(i)) + MIB + 1 for i in range(40))


def test_many_small_lines_arrive_all_of_them(world: Interpreter) -> None:
    code = "import sys\nfor i in range(20000):\n    print(i)\n    if i % 3 == 0: sys.stdout.flush()"
    execution = world.execute(code)
    assert execution.stdout == "".join(f"{i}\n" for i in range(20000))


def test_one_large_piece_comes_in_lines_of_bounded_length(world: Interpreter) -> None:
    execution = world.execute("print('y' * (5 << 20))")
    assert max(len(line["text"]) for line in execution.all("stdout")) <= MIB
    assert len(execution.stdout) == 5 * MIB + 1


def test_a_piece_beyond_the_limit_is_said_to_be_missing(world: Interpreter) -> None:
    code = (
        "from IPython.display import display\ndisplay({'text/plain': 'z' * (70 << 20)}, raw=True)"
    )
    execution = world.execute(code)
    assert execution.error is not None
    assert execution.error["name"] == "OutputLost"
    assert world.execute("1").text == "1"


def test_a_flood_ends_with_its_client(world: Interpreter) -> None:
    context = world.create_context()["id"]
    with world.executing("while True: print('x' * 1000)", context_id=context) as answer:
        answer.read(MIB)
    assert world.execute("'on'", context_id=context).text == "on"
