"""The languages, in one table: which kernel, how it is reached, how its variables are set."""

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Transport = Literal["ipc", "tcp"]
"""Unix sockets where the kernel's ZeroMQ has them: an open TCP connection makes every snapshot of
the sandbox slower (docs/rfd/0014)."""

_SHELL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Language:
    """`set_variables` and `unset_variable` answer code for the kernel, whatever the values are."""

    name: str
    kernels: tuple[str, ...]
    """Names of kernelspecs, best first."""
    transport: Transport
    set_variables: Callable[[Mapping[str, str]], str]
    unset_variable: Callable[[str], str]
    rehearsal: str = ""
    """Code that goes the way of others and leaves nothing behind, run silently (context.py)."""
    shows_values: bool = False
    """The kernel displays values; the last one is then the cell's (run.py)."""
    variable: re.Pattern[str] | None = None
    """What a variable's name must look like, where not every name will do."""

    def takes(self, name: str) -> bool:
        """Whether a variable may have this name."""
        if not name or "=" in name or "\0" in name:
            return False
        return self.variable is None or self.variable.fullmatch(name) is not None

    def change_variables(self, values: Mapping[str, str | None]) -> str:
        """Code that sets what has a value and removes what has None."""
        kept = {name: value for name, value in values.items() if value is not None}
        parts = [self.set_variables(kept)] if kept else []
        parts += [self.unset_variable(name) for name, value in values.items() if value is None]
        return "\n".join(parts)


def normalize(language: str) -> str:
    """The name that the table and the answers use for what a client calls a language."""
    name = language.strip().lower()
    return {"js": "javascript", "ts": "typescript", "py": "python", "sh": "bash"}.get(name, name)


def find(language: str, installed: set[str]) -> Language | None:
    """`installed`: names of kernelspecs. A kernel without a place in the table works as well, only
    without variables.
    """
    known = TABLE.get(language)
    if known is not None:
        return known if any(kernel in installed for kernel in known.kernels) else None
    if language in installed:
        return Language(language, (language,), "tcp", lambda _: "", lambda _: "")
    return None


def _quote(text: str) -> str:
    """A text in double quotes, as JavaScript, Java and R read it."""
    return json.dumps(text)


def _quote_utf8(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _python_set(values: Mapping[str, str]) -> str:
    # Nothing is imported into the user's names.
    return f"__import__('os').environ.update({dict(values)!r})"


# A value in every format that there is, and a line of output. Not as the cell's own value: silent
# cells have none, and one that is not silent stays in `_` and `Out`.
_PYTHON_REHEARSAL = "__import__('IPython').display.display(''); print()"


def _lines(line: Callable[[str, str], str]) -> Callable[[Mapping[str, str]], str]:
    return lambda values: "\n".join(line(name, value) for name, value in values.items())


_set_in_node = _lines(lambda name, value: f"process.env[{_quote(name)}] = {_quote(value)};")


def _unset_in_node(name: str) -> str:
    return f"delete process.env[{_quote(name)}];"


TABLE: Mapping[str, Language] = {
    language.name: language
    for language in (
        Language(
            "python",
            ("python3",),
            "ipc",
            _python_set,
            lambda name: f"__import__('os').environ.pop({name!r}, None)",
            _PYTHON_REHEARSAL,
        ),
        Language("javascript", ("javascript",), "ipc", _set_in_node, _unset_in_node),
        Language("typescript", ("typescript", "javascript"), "ipc", _set_in_node, _unset_in_node),
        Language(
            "bash",
            ("bash",),
            "ipc",
            _lines(lambda name, value: f"export {name}={shlex.quote(value)}"),
            lambda name: f"unset {name}",
            variable=_SHELL_NAME,
        ),
        Language(
            "r",
            ("ir",),
            "ipc",
            _lines(
                lambda name, value: (
                    f"invisible(do.call(Sys.setenv, "
                    f"setNames(list({_quote_utf8(value)}), {_quote_utf8(name)})))"
                )
            ),
            lambda name: f"invisible(Sys.unsetenv({_quote_utf8(name)}))",
            shows_values=True,
        ),
        Language(
            "java",
            ("java",),
            "tcp",
            _lines(lambda name, value: f"System.setProperty({_quote(name)}, {_quote(value)});"),
            lambda name: f"System.clearProperty({_quote(name)});",
        ),
    )
}
