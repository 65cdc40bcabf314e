"""PPIO's own client of the code interpreter (ppio_sandbox.code_interpreter)."""

import sys

from ppio_sandbox.code_interpreter import Sandbox

sandbox = Sandbox.create(sys.argv[1], timeout=300, envs={"MINE": "a"})
try:
    sandbox.run_code("x = 20")
    execution = sandbox.run_code("print('said'); x + 1")
    assert execution.text == "21"
    assert execution.logs.stdout == ["said\n"]
    assert sandbox.run_code("import os; os.environ['MINE']").text == "a"
    context = sandbox.create_code_context(cwd="/root")
    assert sandbox.run_code("import os; os.getcwd()", context=context).text == "/root"
    failed = sandbox.run_code("x", context=context)
    assert failed.error is not None
    assert failed.error.name == "NameError"
    assert sandbox.run_code("[1, 2].length", language="js").error is None
finally:
    sandbox.kill()
