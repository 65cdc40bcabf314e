"""examples/*.py and *.mjs for the code interpreter, run as a reader would, with a model that reads
what it is shown (fake_llm.py): the loops end well only if every error comes back from the sandbox.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openpyxl
import pytest
from e2b_code_interpreter.charts import BarChart, _deserialize_chart

from fake_llm import FakeLlm, fake_llm
from stack import Stack

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NODE_MODULES = Path(__file__).parent / "js" / "node_modules"
PATIENCE_S = 280

pytestmark = [pytest.mark.timeout(PATIENCE_S + 20), pytest.mark.usefixtures("interpreter")]


@pytest.fixture
def llm() -> Iterator[FakeLlm]:
    with fake_llm() as model:
        yield model


def run(stack: Stack, folder: Path, *command: str, llm: FakeLlm | None = None) -> str:
    """Standard output of a program, which must succeed."""
    finished = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | stack.environment | (llm.environment if llm else {}),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def python(stack: Stack, folder: Path, example: str, *words: str, llm: FakeLlm) -> str:
    return run(stack, folder, sys.executable, str(EXAMPLES / example), *words, llm=llm)


def node(stack: Stack, folder: Path, program: str, *words: str, llm: FakeLlm | None = None) -> str:
    """`program` is the text of a module; its packages are looked for beside it."""
    (folder / "program.mjs").write_text(program)
    (folder / "node_modules").symlink_to(NODE_MODULES)
    return run(stack, folder, "node", "program.mjs", *words, llm=llm)


def test_error_repair(stack: Stack, tmp_path: Path, llm: FakeLlm) -> None:
    said = python(
        stack, tmp_path, "error_repair.py", "What is the mean of 3, 5 and 10?", llm=llm
    ).splitlines()
    assert said[0].startswith("attempt 1: NameError: name 'statistics' is not defined")
    assert said[1:3] == ["attempt 2: works", "The mean is 6"]
    # The model saw the kernel's own traceback, with the line that failed and without colours.
    shown = llm.conversations[-1][-1]["content"]
    assert "statistics.mean(numbers)" in shown
    assert "\x1b" not in shown


def test_csv_to_chart(stack: Stack, tmp_path: Path, llm: FakeLlm) -> None:
    (tmp_path / "sales.csv").write_text(
        "Region,Product,Revenue (EUR)\nNorth,tea,10\nSouth,tea,20.5\nNorth,coffee,5\n"
    )
    said = python(stack, tmp_path, "analyse_csv.py", "sales.csv", "revenue by region", llm=llm)
    assert "attempt 3: works" in said
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    chart = _deserialize_chart(json.loads((tmp_path / "chart.json").read_text()))
    assert isinstance(chart, BarChart)
    assert [(bar.label, bar.value) for bar in chart.elements] == [("North", 15), ("South", 20.5)]
    assert (chart.x_label, chart.y_unit) == ("Region", "EUR")


def test_question_to_new_sheet(stack: Stack, tmp_path: Path, llm: FakeLlm) -> None:
    book = openpyxl.Workbook()
    orders = book.active
    orders.title = "orders"
    for row in (("Customer", "Amount"), ("Ada", 1), ("Bob", 2), ("Ada", 3)):
        orders.append(row)
    book.save(tmp_path / "orders.xlsx")
    python(stack, tmp_path, "ask_spreadsheet.py", "orders.xlsx", "amount by customer", llm=llm)
    answered = openpyxl.load_workbook(tmp_path / "answered.xlsx")
    assert answered.sheetnames == ["orders", "Answer"]
    rows = [[cell.value for cell in row] for row in answered["Answer"].rows]
    assert rows == [["Customer", "Amount"], ["Ada", 4], ["Bob", 2]]
    assert answered["orders"].max_row == 4


def test_debug_loop(stack: Stack, tmp_path: Path, llm: FakeLlm) -> None:
    (tmp_path / "broken.py").write_text(
        "def area(radius):\n    return math.pi * raduis ** 2\n\nprint(f'{area(2):.2f}')\n"
    )
    fixed = python(stack, tmp_path, "debug_code.py", "broken.py", llm=llm)
    assert len(llm.conversations) == 2
    done = subprocess.run([sys.executable, "-c", fixed], capture_output=True, text=True, check=True)
    assert done.stdout == "12.57\n"


def test_debug_loop_in_javascript(stack: Stack, tmp_path: Path, llm: FakeLlm) -> None:
    (tmp_path / "broken.js").write_text(
        "const prices = [3, 4]\nlet total = 0\nfor (const price of prices) totl += prise\n"
    )
    program = (EXAMPLES / "debug_code.mjs").read_text()
    fixed = node(stack, tmp_path, program, "broken.js", llm=llm)
    assert (
        fixed
        == "const prices = [3, 4]\nlet total = 0\nfor (const price of prices) total += price\n"
    )
    assert len(llm.conversations) == 2


def test_quick_reference(stack: Stack, tmp_path: Path) -> None:
    said = run(stack, tmp_path, sys.executable, str(EXAMPLES / "quick_reference.py")).splitlines()
    assert said[:-1] == [
        "21",
        r"['hello\n']",
        "ZeroDivisionError division by zero",
        "as it comes",
        "Rome",
        "[ 2, 4 ]",
        "/home/user",
        "6",
        "['numbers.txt']",
        "1",
        "2",
        "3",
        "",
    ]
    assert re.fullmatch(r"9223-\S+", said[-1])


# What the official packages show first in their own README.
PYTHON_README = """
from e2b_code_interpreter import Sandbox

with Sandbox.create() as sandbox:
    sandbox.run_code("x = 1")
    execution = sandbox.run_code("x+=1; x")
    print(execution.text)  # outputs 2
"""
JAVASCRIPT_README = """
import { Sandbox } from '@e2b/code-interpreter'

const sbx = await Sandbox.create()
await sbx.runCode('x = 1')

const execution = await sbx.runCode('x+=1; x')
console.log(execution.text)  // outputs 2
await sbx.kill()
"""


def test_readme_of_the_python_package(stack: Stack, tmp_path: Path) -> None:
    assert run(stack, tmp_path, sys.executable, "-c", PYTHON_README) == "2\n"


def test_readme_of_the_javascript_package(stack: Stack, tmp_path: Path) -> None:
    assert node(stack, tmp_path, JAVASCRIPT_README) == "2\n"


def test_examples_say_what_is_missing(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if "LLM" not in name}
    finished = subprocess.run(
        [sys.executable, "-c", "from llm import Chat; Chat('')"],
        env=environment | {"PYTHONPATH": str(EXAMPLES), "LLM_MODEL": "some"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 1
    assert finished.stderr == "set LLM_API_KEY (and LLM_BASE_URL, unless it is OpenAI)\n"
