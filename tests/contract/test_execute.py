"""POST /v1/sandboxes/{id}/execute and `alcove sandbox run` against real interpreters.

State is shared with run_code of the official client, whose own tests are in test_code_*.py.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b import Sandbox as PlainSandbox
from e2b_code_interpreter import Sandbox

from stack import DATA_DIR, Stack

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def sandbox(interpreter: str) -> Iterator[Sandbox]:
    # The client's own default template.
    made = Sandbox.create(timeout=1200)
    yield made
    made.kill()


def execute(stack: Stack, sandbox_id: str, code: str, **more: Any) -> dict[str, Any]:
    answer = httpx.post(
        f"{stack.api_url}/v1/sandboxes/{sandbox_id}/execute",
        json={"code": code} | more,
        headers={"X-API-Key": stack.api_key},
        timeout=300,
    )
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """`alcove sandbox run` on the test installation."""
    command = [sys.executable, "-m", "alcove.cli.main", "sandbox", "run", *arguments]
    return subprocess.run(
        [*command, "--data-dir", str(DATA_DIR)], capture_output=True, text=True, input=stdin
    )


def test_the_default_template_has_kernels_and_its_aliases_are_the_same(
    stack: Stack, sandbox: Sandbox, interpreter: str
) -> None:
    assert sandbox.run_code("6 * 7").text == "42"
    info = sandbox.get_info()
    assert (info.cpu_count, info.memory_mb) == (2, 2048)
    for alias in ("code-interpreter", "code-interpreter-beta"):
        other = PlainSandbox.create(alias, timeout=60)
        assert other.get_info().template_id == info.template_id
        other.kill()


def test_what_seed_programs_send(stack: Stack, sandbox: Sandbox) -> None:
    done = execute(
        stack,
        sandbox.sandbox_id,
        """
        import sys
        print("out")
        print("err", file=sys.stderr)
        6 * 7
        """,
    )
    assert (done["stdout"], done["stderr"], done["exit_code"]) == ("out\n", "err\n", 0)
    [result] = done["results"]
    assert (result["text"], result["is_main_result"]) == ("42", True)
    assert (done["error"], done["truncated"]) == (None, False)

    failed = execute(stack, sandbox.sandbox_id, "print('before')\nmissing")
    assert (failed["stdout"], failed["exit_code"]) == ("before\n", 1)
    assert failed["error"]["name"] == "NameError"
    assert "missing" in failed["error"]["traceback"]


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", "print(6 * 7)"),
        ("javascript", "console.log(6 * 7)"),
        ("typescript", "const n: number = 6; console.log(n * 7)"),
        ("bash", "echo $((6 * 7))"),
        ("r", "cat(6 * 7)"),
        ("java", "System.out.println(6 * 7);"),
    ],
)
def test_languages(stack: Stack, sandbox: Sandbox, language: str, code: str) -> None:
    done = execute(stack, sandbox.sandbox_id, code, language=language, timeout=240)
    assert (done["stdout"].strip(), done["exit_code"]) == ("42", 0), done


def test_variables_of_the_environment_are_of_one_execution(stack: Stack, sandbox: Sandbox) -> None:
    asked = "import os; print(os.environ.get('ONCE'))"
    assert execute(stack, sandbox.sandbox_id, asked, env={"ONCE": "1"})["stdout"] == "1\n"
    assert execute(stack, sandbox.sandbox_id, asked)["stdout"] == "None\n"


ELSEWHERE = """
import sys
from e2b_code_interpreter import Sandbox
sandbox = Sandbox.connect(sys.argv[1])
print(sandbox.run_code("kept + 1").text)
print(sandbox.files.read("/home/user/kept.txt"))
print(sandbox.commands.run("pgrep -f 'sleep 98765' | wc -l").stdout.strip())
"""


def test_another_process_that_connects_sees_variables_files_and_processes(
    stack: Stack, sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.run_code("kept = 41")
    sandbox.files.write("/home/user/kept.txt", "file")
    sandbox.commands.run("exec sleep 98765", background=True, timeout=0)
    script = tmp_path / "elsewhere.py"
    script.write_text(ELSEWHERE)
    seen = subprocess.run(
        [sys.executable, str(script), sandbox.sandbox_id],
        capture_output=True,
        text=True,
        check=True,
    )
    # pgrep -f sees the shell that runs it as well.
    assert seen.stdout.split()[:2] == ["42", "file"]
    assert int(seen.stdout.split()[2]) >= 2
    assert execute(stack, sandbox.sandbox_id, "kept")["results"][0]["text"] == "41"
    sandbox.commands.run("pkill -f '[s]leep 98765'")


def test_the_time_limit_interrupts_and_keeps_the_state(stack: Stack, sandbox: Sandbox) -> None:
    execute(stack, sandbox.sandbox_id, "before = 1")
    late = execute(stack, sandbox.sandbox_id, "print('begun')\nwhile True: pass", timeout=3)
    assert (late["stdout"], late["exit_code"]) == ("begun\n", 124)
    assert late["error"]["name"] == "ExecutionTimeout"
    assert execute(stack, sandbox.sandbox_id, "before")["results"][0]["text"] == "1"


def test_a_client_that_leaves_interrupts(stack: Stack, sandbox: Sandbox) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{stack.api_url}/v1/sandboxes/{sandbox.sandbox_id}/execute",
            json={"code": "import time; time.sleep(3000)", "timeout": 3600},
            headers={"X-API-Key": stack.api_key},
            timeout=3,
        )
    # Waits behind the other one until that was interrupted.
    assert execute(stack, sandbox.sandbox_id, "1 + 1", timeout=60)["exit_code"] == 0


def test_a_flood_is_ended_and_the_sandbox_stays_usable(stack: Stack, sandbox: Sandbox) -> None:
    # Not so much at once that the kernel ends of it, which is another test.
    flood = "for _ in range(1500): print('x' * 60_000)"
    done = execute(stack, sandbox.sandbox_id, flood, timeout=240)
    assert (done["exit_code"], done["error"]["name"]) == (1, "TooMuchOutput")
    assert (len(done["stdout"]), done["truncated"]) == (1 << 20, True)
    assert execute(stack, sandbox.sandbox_id, "print(1)")["stdout"] == "1\n"


def test_executions_at_once_in_several_sandboxes_and_languages(
    stack: Stack, sandbox: Sandbox
) -> None:
    done: list[str] = []

    def one(language: str, code: str) -> None:
        done.append(execute(stack, sandbox.sandbox_id, code, language=language)["stdout"].strip())

    pairs = [("python", f"print({n})") for n in range(8)] + [("bash", "echo 8")]
    threads = [threading.Thread(target=one, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [str(n) for n in range(9)]


def test_a_paused_sandbox_is_woken_with_its_variables(stack: Stack, interpreter: str) -> None:
    lifecycle: Any = {"on_timeout": "pause", "auto_resume": True}
    made = Sandbox.create(timeout=600, lifecycle=lifecycle)
    try:
        execute(stack, made.sandbox_id, "kept = 5")
        made.pause()
        assert execute(stack, made.sandbox_id, "kept")["results"][0]["text"] == "5"
    finally:
        made.kill()


def test_without_an_interpreter_the_template_is_named(stack: Stack, interpreter: str) -> None:
    base = PlainSandbox.create(timeout=60)
    ran = run(base.sandbox_id, "-", stdin="print(1)")
    assert ran.returncode == 1
    assert "code-interpreter-v1" in ran.stderr
    base.kill()


def test_the_command_line(stack: Stack, sandbox: Sandbox, tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_text("import os\nprint(os.environ['A'])\n6 * 7\n")
    ran = run(sandbox.sandbox_id, str(file), "--env", "A=out")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "out\n42\n", "")
    failed = run(sandbox.sandbox_id, "-", stdin="print('x')\n1/0")
    assert (failed.returncode, failed.stdout) == (1, "x\n")
    assert "ZeroDivisionError" in failed.stderr
    shown = run(sandbox.sandbox_id, "-", "--language", "bash", "--format", "json", stdin="echo $0")
    assert json.loads(shown.stdout)["exit_code"] == 0
    late = run(sandbox.sandbox_id, "-", "--timeout", "2", stdin="while True: pass")
    assert late.returncode == 124
    assert run(sandbox.sandbox_id, "-", "--env", "A", stdin="1").returncode == 2
