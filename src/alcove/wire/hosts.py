"""Names of sandbox ports in DNS: {port}-{sandbox}.{domain} (contract e2b 1.2 and 5.1)."""

from dataclasses import dataclass

from alcove.wire.ids import InvalidIdError, SandboxId, parse_sandbox_id

GUEST_PORT = 49983
"""TCP port of the guest agent inside every sandbox (what E2B calls envd)."""

INTERNAL_ROUTES = frozenset(
    {
        *("init", "freeze", "unfreeze", "collapse", "fsfreeze", "fsthaw", "upgrade"),
        *("activity", "forward", "memory", "reboot", "settle", "volumes"),
    }
)
"""First segments of the paths on the guest's port that are for the node alone: those the original
platform has (contract e2b 3.1, 12.59), and ours."""

MIN_PORT, MAX_PORT = 1, 65535


class InvalidHostError(ValueError):
    """The name does not have the form {port}-{sandbox}.{domain}. args[0] is what clients read."""


@dataclass(frozen=True, slots=True)
class PortOfSandbox:
    sandbox_id: SandboxId
    port: int


def host_of(sandbox_id: SandboxId, port: int, domain: str) -> str:
    return f"{port}-{sandbox_id}.{domain}"


def parse_host(host: str) -> PortOfSandbox:
    """Read the leftmost label of a Host header; a legacy third part is ignored.

    Raises InvalidHostError with one of the contract's texts.
    """
    label, dot, _ = host.partition(".")
    parts = label.split("-")
    if not dot or len(parts) not in {2, 3}:
        raise InvalidHostError("Invalid host")
    return parse_port_and_id(parts[0], parts[1])


def parse_port_and_id(port_text: str, id_text: str) -> PortOfSandbox:
    """Read a port and a sandbox id that came as two texts (host label or routing headers)."""
    # isdecimal() alone admits digits of other scripts, and int() accepts signs and underscores.
    if not (port_text.isascii() and port_text.isdecimal() and len(port_text) <= 5):
        raise InvalidHostError("Invalid sandbox port")
    port = int(port_text)
    if not MIN_PORT <= port <= MAX_PORT:
        raise InvalidHostError("Invalid sandbox port")
    try:
        return PortOfSandbox(parse_sandbox_id(id_text), port)
    except InvalidIdError as error:
        raise InvalidHostError("Invalid sandbox ID") from error
