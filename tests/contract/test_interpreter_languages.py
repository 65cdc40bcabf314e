"""The languages of the code interpreter by the official client: state, output, errors, stops."""

import time
from collections.abc import Iterator

import pytest
from e2b_code_interpreter import Execution, Sandbox, TimeoutException

pytestmark = pytest.mark.timeout(900)

LANGUAGES = ("python", "javascript", "typescript", "bash", "r", "java")


@pytest.fixture(scope="module")
def interpreter(interpreter: str) -> Iterator[Sandbox]:
    sandbox = Sandbox.create(interpreter, timeout=1800)
    yield sandbox
    sandbox.kill()


def run(sandbox: Sandbox, language: str, code: str) -> Execution:
    return sandbox.run_code(code, language=language, timeout=240)


def shown(execution: Execution) -> str | None:
    assert execution.error is None, execution.error
    return None if execution.text is None else execution.text.strip()


@pytest.mark.parametrize(
    ("language", "printing"),
    [
        ("python", "import sys; print('out'); print('err', file=sys.stderr)"),
        ("javascript", "console.log('out'); console.error('err')"),
        ("typescript", "const text: string = 'out'; console.log(text); console.error('err')"),
        ("bash", "echo out; echo err >&2"),
        ("r", "cat('out\\n'); message('err')"),
        ("java", 'System.out.println("out"); System.err.println("err");'),
    ],
)
def test_output_and_error_output_are_two_streams(
    interpreter: Sandbox, language: str, printing: str
) -> None:
    execution = run(interpreter, language, printing)
    assert execution.error is None
    assert "".join(execution.logs.stdout) == "out\n"
    # IRkernel ends a message with two line ends.
    assert "".join(execution.logs.stderr).rstrip("\n") == "err"


@pytest.mark.parametrize(
    ("language", "first", "then", "text"),
    [
        ("python", "x = 3", "x + 1", "4"),
        ("javascript", "let x = 3; const y = 1", "const y = 2; x + y", "5"),
        ("javascript", "let again = 1; class C {}", "const again = 2; class C {}; again", "2"),
        ("javascript", "const once = 1", "once = 2; once", "2"),
        ("typescript", "let z: number = 3", "z + (1 as number)", "4"),
        ("r", "x <- 3", "x + 1", "[1] 4"),
        ("java", "int x = 3;", "x + 1", "4"),
    ],
)
def test_a_cell_finds_what_the_one_before_made(
    interpreter: Sandbox, language: str, first: str, then: str, text: str
) -> None:
    assert run(interpreter, language, first).error is None
    assert shown(run(interpreter, language, then)) == text


def test_bash_keeps_variables_functions_and_directory(interpreter: Sandbox) -> None:
    assert run(interpreter, "bash", "x=3; f() { echo f $1; }; cd /tmp").error is None
    execution = run(interpreter, "bash", "f $x\npwd\ncd ~-")
    assert "".join(execution.logs.stdout) == "f 3\n/tmp\n"


@pytest.mark.parametrize(
    ("language", "code", "name", "value", "trace"),
    [
        ("python", "def f():\n    1 / 0\nf()", "ZeroDivisionError", "division by zero", "in f()"),
        ("javascript", "function f() {\n  null.x\n}\nf()", "TypeError", "null", "at f (["),
        ("typescript", "class A extends Error { name = 'A' }\nthrow new A('why')", "A", "why", "A"),
        ("bash", "exit_with() { return 7; }; exit_with", "", "7", ""),
        ("r", "f <- function() stop('why')\nf()", "ERROR", "why", "f()"),
        ("java", "int[] a = {};\na[1]", "RuntimeException", "ArrayIndexOutOfBounds", "Index 1"),
    ],
)
def test_errors_have_name_value_and_traceback(
    interpreter: Sandbox, language: str, code: str, name: str, value: str, trace: str
) -> None:
    error = run(interpreter, language, code).error
    assert error is not None
    assert error.name == name
    assert value in error.value
    assert trace in error.traceback
    assert "\x1b" not in error.traceback


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", "x = ("),
        ("javascript", "foo("),
        ("typescript", "let x: = 3"),
        ("bash", "if true; then"),
        ("r", "f <- function( {"),
        ("java", "int x = ;"),
    ],
)
def test_wrong_syntax_is_an_error_and_the_context_goes_on(
    interpreter: Sandbox, language: str, code: str
) -> None:
    assert run(interpreter, language, code).error is not None
    nothing = "" if language == "bash" else "1"
    assert run(interpreter, language, nothing).error is None


@pytest.mark.parametrize(
    ("language", "endless", "after"),
    [
        ("python", "while True: pass", "print('here')"),
        ("javascript", "while (true) {}", "console.log('here')"),
        ("javascript", "await new Promise(() => {})", "console.log('here')"),
        ("typescript", "for (let i: number = 0; ; i++) {}", "console.log('here')"),
        ("bash", "while true; do :; done", "echo here"),
        ("bash", "sleep 600", "echo here"),
        ("r", "while (TRUE) {}", "cat('here\\n')"),
        ("java", "while (true) {}", 'System.out.println("here");'),
    ],
)
def test_a_cell_that_never_ends_is_interrupted_with_its_client(
    interpreter: Sandbox, language: str, endless: str, after: str
) -> None:
    # The kernel is there before the clock runs.
    assert "".join(run(interpreter, language, after).logs.stdout) == "here\n"
    with pytest.raises(TimeoutException):
        interpreter.run_code(endless, language=language, timeout=2)
    assert "".join(run(interpreter, language, after).logs.stdout) == "here\n"


@pytest.mark.parametrize(
    ("language", "code", "text"),
    [
        (
            "javascript",
            "import { sep } from 'node:path'\nimport fs from 'fs'\nsep + typeof fs.readFileSync",
            "/function",
        ),
        ("javascript", "const { EOL } = require('os'); EOL.length", "1"),
        ("javascript", "(await import('node:os')).EOL.length", "1"),
        ("javascript", "await Promise.resolve('awaited')", "awaited"),
        ("javascript", "Promise.resolve('settled')", "settled"),
        ("javascript", "{a: 1}", "{ a: 1 }"),
        ("javascript", "const n: number = 2; n", "2"),
        ("javascript", "process.cwd()", "/home/user"),
        ("typescript", "enum E { A, B }\nE.B", "1"),
        (
            "typescript",
            "interface P { a: number }\nconst f = <T,>(x: T): T => x\nf<P>({ a: 4 }).a",
            "4",
        ),
        ("typescript", "export const exported = 5; exported", "5"),
        ("r", "getwd()", '[1] "/home/user"'),
        ("java", 'System.getProperty("user.dir")', "/home/user"),
        ("java", "record Point(int x) {}\nnew Point(3)", "Point[x=3]"),
    ],
)
def test_what_each_language_is_known_for(
    interpreter: Sandbox, language: str, code: str, text: str
) -> None:
    assert shown(run(interpreter, language, code)) == text


def test_packages_that_npm_has_installed_are_imported(interpreter: Sandbox) -> None:
    interpreter.commands.run("npm install --silent is-odd@3.0.1", timeout=180)
    assert shown(run(interpreter, "js", "import isOdd from 'is-odd'\nisOdd(3)")) == "true"
    assert shown(run(interpreter, "ts", "require('is-odd')(4) as boolean")) == "false"
    missing = run(interpreter, "js", "import x from 'is-nowhere-to-be-found'").error
    assert missing is not None
    assert "is-nowhere-to-be-found" in missing.value


def test_packages_that_pip_has_installed_are_imported(interpreter: Sandbox) -> None:
    interpreter.commands.run("pip install --quiet cowsay==6.1", timeout=180)
    assert shown(run(interpreter, "python", "import cowsay; cowsay.__version__")) is not None


def test_javascript_shows_html_images_and_json(interpreter: Sandbox) -> None:
    execution = run(
        interpreter,
        "js",
        "display({ 'text/html': '<b>x</b>' }, { raw: true })\n"
        "$$.display($$.png('aGk='))\n"
        "$$.json({ a: [1] })",
    )
    assert execution.error is None
    html, png, json = execution.results
    assert (html.html, html.is_main_result) == ("<b>x</b>", False)
    assert png.png == "aGk="
    assert (json.json, json.is_main_result) == ({"a": [1]}, True)


def test_output_of_children_of_javascript_is_the_cells(interpreter: Sandbox) -> None:
    code = (
        "require('child_process').execSync('echo child', { stdio: 'inherit' }); console.log('own')"
    )
    execution = run(interpreter, "js", code)
    assert "".join(execution.logs.stdout) == "child\nown\n"


def test_what_javascript_leaves_running_reports_later(interpreter: Sandbox) -> None:
    code = (
        "setTimeout(() => { throw new Error('late') }, 1)\n"
        "await new Promise(done => setTimeout(done, 200)); 1"
    )
    execution = run(interpreter, "js", code)
    assert shown(execution) == "1"
    assert "late" in "".join(execution.logs.stderr)


def test_the_last_value_of_r_is_the_result_and_a_plot_is_none(interpreter: Sandbox) -> None:
    execution = run(interpreter, "r", "1 + 1\nprint('said')\n3 * 3")
    assert [result.is_main_result for result in execution.results] == [False, True]
    assert execution.text == "[1] 9"
    assert run(interpreter, "r", "5\nplot(1:3)").text is None
    assert run(interpreter, "r", "6\nstop('why')").text is None
    assert run(interpreter, "r", "x <- 7").text is None


def test_plots_of_r_are_pictures(interpreter: Sandbox) -> None:
    execution = run(interpreter, "r", "plot(1:3)")
    assert execution.error is None
    assert execution.results[-1].png is not None
    assert execution.results[-1].png.startswith("iVBOR")


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("javascript", "process.exit(3)"),
        ("bash", "exit 3"),
        ("r", "quit(save = 'no')"),
        ("java", "System.exit(3);"),
    ],
)
def test_a_program_that_ends_itself_is_reported_and_starts_anew(
    interpreter: Sandbox, language: str, code: str
) -> None:
    run(interpreter, language, code)
    after = {"javascript": "console.log('new')", "bash": "echo new", "r": "cat('new\\n')"}
    execution = run(interpreter, language, after.get(language, 'System.out.println("new");'))
    assert "".join(execution.logs.stdout) == "new\n"


def test_javascript_prints_what_it_printed_before_it_ended(interpreter: Sandbox) -> None:
    execution = run(interpreter, "js", "console.log('last words'); process.exit(0)")
    assert "".join(execution.logs.stdout) == "last words\n"


@pytest.mark.parametrize("language", LANGUAGES)
def test_text_of_every_script_arrives_whole(interpreter: Sandbox, language: str) -> None:
    printing = {
        "python": "print('é中😀')",
        "bash": "echo 'é中😀'",
        "r": "cat('é中😀\\n')",
        "java": 'System.out.println("é中😀");',
    }
    execution = run(interpreter, language, printing.get(language, "console.log('é中😀')"))
    assert "".join(execution.logs.stdout) == "é中😀\n"


def test_the_analysis_packages_are_there(interpreter: Sandbox) -> None:
    names = (
        "bokeh bs4 cv2 docx gensim librosa lxml matplotlib nltk numpy openpyxl orjson pandas PIL"
        " plotly pytest requests scipy seaborn sklearn spacy sympy xarray"
    )
    started = time.monotonic()
    code = f"import importlib\nfor n in {names.split()!r}: importlib.import_module(n)"
    assert run(interpreter, "python", code).error is None, time.monotonic() - started
