"""What sudo does, as pure rules: who may, which program, in which environment.

The defaults of the distributions' sudo with env_reset, secure_path and NOPASSWD: ALL.
"""

import os
from dataclasses import dataclass

from alcove.guest.environment import Environment
from alcove.guest.users import User, group_ids, with_uid

_GROUPS = ("sudo", "wheel", "admin")
_KEPT = {
    "COLORS", "COLORTERM", "DISPLAY", "LANG", "LANGUAGE", "LS_COLORS", "TERM", "TZ", "XAUTHORITY",
    # What the agent gives programs so that they trust the machine's certificates (machine.py).
    "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS", "PIP_CERT", "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
}  # fmt: skip
_KEPT_PREFIXES = ("LC_", "E2B_")
_SAFE_IN_SHELL = frozenset("_-$")


class RefusedError(Exception):
    """The request is malformed or its sender may not; args[0] is for them."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the client asks for; `options` by sudo's long names."""

    options: dict[str, str]
    assignments: dict[str, str]
    command: list[str]
    env: dict[str, str]


@dataclass(frozen=True, slots=True)
class Program:
    """What to start: argv[0] may differ from the file, as for a login shell."""

    file: str
    argv: list[str]


def parse(body: bytes) -> Request:
    """Raises RefusedError."""
    texts = [os.fsdecode(text) for text in body.split(b"\0")]
    try:
        end = texts.index("")
        count = int(texts[end + 1])
    except (ValueError, IndexError):
        raise RefusedError("the request is malformed") from None
    rest = texts[end + 2 :]
    if not 0 <= count <= len(rest):
        raise RefusedError("the request lacks what it announces")
    fields = dict(text.split("=", 1) for text in texts[:end] if "=" in text)
    return Request(
        options={name: value for name, value in fields.items() if not name.startswith(" ")},
        assignments={name[1:]: value for name, value in fields.items() if name.startswith(" ")},
        command=rest[:count],
        env=dict(text.split("=", 1) for text in rest[count:] if "=" in text),
    )


def authorize(uid: int, environment: Environment) -> User:
    """The caller, who may become anybody. Raises RefusedError."""
    caller = with_uid(uid)
    if caller is None:
        raise RefusedError(f"you do not exist in the user database (user id {uid})")
    allowed = (
        uid == 0
        or caller.name == environment.default_user
        or bool(set(caller.groups) & group_ids(_GROUPS))
    )
    if not allowed:
        raise RefusedError(
            f"{caller.name} may not become another user;"
            f" add them to the group sudo as root: usermod -aG sudo {caller.name}"
        )
    return caller


def target(request: Request, environment: Environment) -> User:
    """Whom the command runs as. Raises RefusedError."""
    name = request.options.get("user") or "root"
    if name.startswith("#") and name[1:].isdecimal():
        user = with_uid(int(name[1:]))
        if user is not None:
            return user
        raise RefusedError(f"unknown user id {name[1:]}")
    try:
        return environment.user(name)
    except LookupError:
        raise RefusedError(f"unknown user {name}") from None


def program(request: Request, caller: User, user: User) -> Program:
    """What to start; `file` is yet to be found on the path if it has no slash."""
    options, command = request.options, request.command
    if "login" in options:
        shell, name = user.shell, f"-{os.path.basename(user.shell)}"
    elif "shell" in options:
        shell = request.env.get("SHELL") or caller.shell
        name = shell
    elif command:
        return Program(command[0], command)
    else:
        raise RefusedError("no command was given")
    if not command:
        return Program(shell, [name])
    return Program(shell, [name, "-c", " ".join(map(_escape, command))])


def variables(
    request: Request, caller: User, user: User, environment: Environment, started: Program
) -> dict[str, str]:
    """The environment of the command."""
    own = {"HOME": user.home, "LOGNAME": user.name, "USER": user.name, "SHELL": user.shell}
    options, given = request.options, request.env
    if options.get("preserve-env") == "" and "login" not in options:
        env = {**own, **given, "LOGNAME": user.name, "USER": user.name}
        if "set-home" in options:
            env["HOME"] = user.home
    else:
        named = set(options.get("preserve-env", "").split(","))
        env = {name: value for name, value in given.items() if name in named or _kept(name)}
        env |= {name: value for name, value in own.items() if name not in named}
        env["MAIL"] = f"/var/mail/{user.name}"
    env.setdefault("TERM", "unknown")
    env |= {
        "PATH": environment.path,
        **request.assignments,
        "SUDO_COMMAND": " ".join([started.file, *started.argv[1:]]),
        "SUDO_USER": caller.name,
        "SUDO_UID": str(caller.uid),
        "SUDO_GID": str(caller.gid),
    }
    return env


def _kept(name: str) -> bool:
    return name in _KEPT or name.startswith(_KEPT_PREFIXES)


def _escape(word: str) -> str:
    """As sudo does for -i and -s: `$` is left to the shell."""
    if not word:
        return "''"
    return "".join(map(_escape_character, word))


def _escape_character(character: str) -> str:
    if character.isalnum() or character in _SAFE_IN_SHELL:
        return character
    # After a backslash the shell would drop it.
    return "'\n'" if character == "\n" else f"\\{character}"
