"""What a sandbox's rules put into one request: asked for by its node, outside the sandbox.

The row is what counts, so that a change of rules or secrets holds for the next request. That a
secret was used is committed before its value leaves.
"""

from alcove.control.errors import ConflictError, InvalidRequestError, NotFoundError
from alcove.control.sandboxes import store
from alcove.control.sandboxes.context import Context, no_such_sandbox
from alcove.control.sandboxes.rules import filled, is_header_value, read_rules, rule_for, secrets_of
from alcove.control.sandboxes.states import State
from alcove.control.secrets.service import Secrets
from alcove.wire.ids import SandboxId

_MAX_HEADERS_BYTES = 48 * 1024
"""All values of one request together; most servers take less."""


class Injection:
    def __init__(self, context: Context, secrets: Secrets) -> None:
        self._in = context
        self._secrets = secrets

    async def headers(self, sandbox_id: SandboxId, generation: int, host: str) -> dict[str, str]:
        """The headers that a request of this life of the sandbox to a host gets.

        Raises NotFoundError (of the sandbox, of a secret), ConflictError, InvalidRequestError,
        UnavailableError; their messages are for the programs in the sandbox.
        """
        async with self._in.db.transaction() as tx:
            sandbox = await store.find(tx, sandbox_id)
            if sandbox is None:
                raise no_such_sandbox(sandbox_id)
            if sandbox.generation != generation or sandbox.state not in _ALIVE:
                raise ConflictError(f'Sandbox "{sandbox_id}" is not in that life any more')
            rule = rule_for(read_rules(sandbox.network.get("rules")), host)
            if rule is None:
                raise NotFoundError(f"No rule of the sandbox is for {host}")
            wanted = {name for value in rule.headers.values() for name in secrets_of(value)}
            secrets = {
                name: await self._secrets.read(
                    tx, sandbox.team_id, name, sandbox_id=sandbox_id, domain=host
                )
                for name in sorted(wanted)
            }
        headers = {name: filled(value, secrets) for name, value in rule.headers.items()}
        _check(headers)
        return headers


_ALIVE = (State.STARTING, State.RESUMING, State.RUNNING, State.PAUSING)
"""In which its programs may be running: a start is known to the node before it is to the row."""


def _check(headers: dict[str, str]) -> None:
    for name, value in headers.items():
        if not is_header_value(value):
            raise InvalidRequestError(
                f"The header '{name}' cannot be sent: a secret in it is not one line of text"
            )
    if sum(map(len, headers.values())) > _MAX_HEADERS_BYTES:
        raise InvalidRequestError(
            f"The headers of the rule have more than {_MAX_HEADERS_BYTES} bytes with their secrets"
        )
