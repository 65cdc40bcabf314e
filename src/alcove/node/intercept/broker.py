"""Asks the node what a request gets (node/broker.py): one line of JSON each way."""

import asyncio
import json
from pathlib import Path

_ANSWER_S = 15.0
_MAX_BYTES = 256 * 1024


class NoAnswerError(Exception):
    """The headers cannot be had; the message is for the programs in the sandbox."""


class Broker:
    def __init__(self, path: Path) -> None:
        self._path = path

    async def headers(self, slot: int, host: str) -> dict[str, str]:
        """What the rules put into a request of a slot's sandbox. Raises NoAnswerError."""
        try:
            async with asyncio.timeout(_ANSWER_S):
                reader, writer = await asyncio.open_unix_connection(self._path, limit=_MAX_BYTES)
                try:
                    writer.write(json.dumps({"slot": slot, "host": host}).encode() + b"\n")
                    answer = json.loads(await reader.readuntil(b"\n"))
                finally:
                    writer.close()
        except (OSError, EOFError, TimeoutError, ValueError, asyncio.LimitOverrunError) as error:
            raise NoAnswerError(
                "what is to be put into the request cannot be looked up at the moment"
            ) from error
        if "error" in answer:
            raise NoAnswerError(str(answer["error"]))
        return {str(name): str(value) for name, value in answer["headers"].items()}
