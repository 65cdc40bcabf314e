"""Ask a question about a workbook; the answer is a new sheet in it.

    python examples/ask_spreadsheet.py orders.xlsx "amount by customer"

Writes answered.xlsx, with everything that was there and a sheet "Answer".
"""

import sys
from pathlib import Path

from e2b_code_interpreter import Sandbox
from error_repair import INSTRUCTIONS, solve
from llm import Chat

REMOTE = "/home/user/book.xlsx"
LOOK = f"""
import pandas as pd
for name, table in pd.read_excel({REMOTE!r}, sheet_name=None).items():
    print(f"sheet {{name!r}}:", table.head(3).to_csv(index=False), sep="\\n")
"""
TASK = """{question}

The workbook {path} has these sheets, each with its first rows:

{sheets}
Put the answer as a table into a new sheet "Answer" of the same workbook, and keep the others."""


def main(path: Path, question: str) -> None:
    with Sandbox.create() as sandbox:
        sandbox.files.write(REMOTE, path.read_bytes())
        looked = sandbox.run_code(LOOK)
        if looked.error is not None:
            sys.exit(f"{path} cannot be read: {looked.error.value}")
        sheets = "".join(looked.logs.stdout)
        task = TASK.format(question=question, path=REMOTE, sheets=sheets)
        done = solve(sandbox, Chat(INSTRUCTIONS), task)
        if done.error is not None:
            sys.exit("no code worked")
        Path("answered.xlsx").write_bytes(sandbox.files.read(REMOTE, format="bytes"))
    print("answered.xlsx")
    print(done.text or "")


if __name__ == "__main__":
    main(Path(sys.argv[1]), " ".join(sys.argv[2:]))
