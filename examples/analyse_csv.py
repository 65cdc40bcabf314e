"""Ask a question about a CSV file; the answer is a picture and the chart's data.

    python examples/analyse_csv.py sales.csv "revenue by region"

Writes chart.png and chart.json.
"""

import base64
import json
import sys
from itertools import islice
from pathlib import Path

from e2b_code_interpreter import Sandbox
from error_repair import INSTRUCTIONS, solve
from llm import Chat

REMOTE = "/home/user/data.csv"
TASK = """{question}

The data is in {path}; its first lines are:

{head}
Draw a chart of the answer with matplotlib and show it."""


def main(path: Path, question: str) -> None:
    with path.open() as file:
        head = "".join(islice(file, 5))
    with Sandbox.create() as sandbox:
        sandbox.files.write(REMOTE, path.read_bytes())
        task = TASK.format(question=question, path=REMOTE, head=head)
        done = solve(sandbox, Chat(INSTRUCTIONS), task)
    drawn = next((result for result in done.results if result.png), None)
    if drawn is None:
        sys.exit("no chart was drawn")
    Path("chart.png").write_bytes(base64.b64decode(drawn.png))
    print("chart.png")
    if drawn.chart is not None:
        Path("chart.json").write_text(json.dumps(drawn.chart.to_dict(), indent=2))
        print(f"chart.json: {drawn.chart.type.value} of {len(drawn.chart.elements)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), " ".join(sys.argv[2:]))
