"""Results of the template's own Python kernel, as the official client hands them out."""

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from e2b_code_interpreter import Execution, Result, Sandbox
from e2b_code_interpreter.charts import LineChart, ScaleType

pytestmark = pytest.mark.timeout(300)
# A first import of everything takes a while on a busy machine.
PATIENCE_S = 120


@pytest.fixture(scope="module")
def sandbox(interpreter: str) -> Iterator[Sandbox]:
    made = Sandbox.create(interpreter, timeout=900)
    yield made
    made.kill()


def run(sandbox: Sandbox, code: str) -> Execution:
    execution = sandbox.run_code(code, timeout=PATIENCE_S)
    assert execution.error is None, execution.error
    assert execution.logs.stderr == []
    return execution


def only(sandbox: Sandbox, code: str) -> Result:
    (result,) = run(sandbox, code).results
    return result


def is_png(data: Any) -> bool:
    return base64.b64decode(data).startswith(b"\x89PNG\r\n\x1a\n")


def test_a_figure_and_then_the_value(sandbox: Sandbox) -> None:
    code = """
    import datetime
    import matplotlib.pyplot as plt

    days = [datetime.date(2024, 1, day) for day in (1, 2, 3)]
    plt.plot(days, [1, 10, 100], label="气温")
    plt.yscale("log")
    plt.title("北京 · 서울 · 東京")
    plt.legend()
    plt.show()

    len(days)
    """
    figure, value = run(sandbox, code).results
    assert is_png(figure.png)
    assert not figure.is_main_result
    assert not figure.extra
    chart = figure.chart
    assert isinstance(chart, LineChart)
    assert (chart.title, chart.x_label) == ("北京 · 서울 · 東京", None)
    assert (chart.x_scale, chart.y_scale) == (ScaleType.DATETIME, ScaleType.LOG)
    assert chart.elements[0].label == "气温"
    assert chart.elements[0].points[2] == ("2024-01-03", 100.0)
    assert (value.text, value.is_main_result) == ("3", True)


def test_a_table(sandbox: Sandbox) -> None:
    result = only(sandbox, "import pandas as pd\npd.DataFrame({'a': [1, None]})")
    assert result.data == {"a": [1.0, None]}
    assert "<table" in str(result.html)


def test_json_of_numpy(sandbox: Sandbox) -> None:
    result = only(sandbox, "import numpy as np\n{'a': np.arange(3), 'b': [np.float32(0.5)]}")
    assert result.json == {"a": [0, 1, 2], "b": [0.5]}


@pytest.mark.parametrize("last", ["image", "image.show()", "image.save('picture.png')"])
def test_pictures(sandbox: Sandbox, last: str) -> None:
    code = f"from PIL import Image\nimage = Image.new('RGBA', (4, 4))\n{last}"
    assert is_png(only(sandbox, code).png)


def test_a_figure_of_plotly(sandbox: Sandbox) -> None:
    code = "import plotly.graph_objects as go\ngo.Figure(go.Scatter(x=[1], y=[2]))"
    extra = only(sandbox, code).extra
    assert extra is not None
    assert extra["application/vnd.plotly.v1+json"]["data"][0]["y"] == [2]


def test_clones_of_a_kernel_share_its_state_and_not_its_numbers(interpreter: str) -> None:
    seeded = """
    import random
    import numpy as np
    state = "kept"
    random.seed(1)
    np.random.seed(1)
    """
    draw = "[state, random.random(), float(np.random.rand())]"
    source = Sandbox.create(interpreter, timeout=600)
    born: list[Sandbox] = [source]
    try:
        run(source, seeded)
        born += [child for child in source.fork(count=2) if isinstance(child, Sandbox)]
        assert len(born) == 3
        drawn = [only(one, draw).json for one in born[1:]]
        drawn.append(only(source, draw).json)
        assert [state for state, *_ in drawn] == ["kept"] * 3
        for place in (1, 2):
            assert len({row[place] for row in drawn}) == 3, drawn
        # What the seed would have given: the clones must not have it.
        expected = only(source, f"{seeded.replace('    ', '')}\n{draw}").json
        assert all(row[1] != expected[1] and row[2] != expected[2] for row in drawn[:2])
    finally:
        for one in born:
            one.kill()
