"""Reading a kernel's messages (Jupyter messaging 5.x), as far as the server needs them.

jupyter_client's own reader looks for dates everywhere in a message, which takes longer than all the
rest of it.
"""

import hmac
import json
from collections.abc import Sequence
from typing import Any, Protocol

_DELIMITER = b"<IDS|MSG>"


class UnreadableError(Exception):
    """What came is no message, or not one of this kernel."""


class Signer(Protocol):
    """jupyter_client's Session."""

    def sign(self, msg_list: list[bytes]) -> bytes: ...


def read(frames: Sequence[bytes], signer: Signer) -> dict[str, Any]:
    """A message: `msg_type`, `header`, `parent_header` and `content`. Raises UnreadableError."""
    try:
        start = list(frames).index(_DELIMITER) + 1
        signature, *parts = frames[start : start + 5]
        header, parent, _, content = parts
        if not hmac.compare_digest(signer.sign(parts), signature):
            raise UnreadableError("it is not signed by this kernel")
        message = {
            "header": json.loads(header),
            "parent_header": json.loads(parent),
            "content": json.loads(content),
        }
        message["msg_type"] = message["header"]["msg_type"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UnreadableError(f"it is no message: {error!r}") from error
    return message
