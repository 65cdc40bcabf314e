"""A chat with any model that speaks OpenAI's protocol, hosted or your own.

LLM_BASE_URL (for example http://localhost:8000/v1), LLM_API_KEY and LLM_MODEL say which.
"""

import os
import re

from openai import OpenAI

BLOCK = re.compile(r"```[\w+-]*\n(.*?)```", re.DOTALL)


class Chat:
    """Remembers what was said."""

    def __init__(self, instructions: str) -> None:
        missing = [name for name in ("LLM_API_KEY", "LLM_MODEL") if not os.environ.get(name)]
        if missing:
            raise SystemExit(f"set {' and '.join(missing)} (and LLM_BASE_URL, unless it is OpenAI)")
        self._client = OpenAI(
            api_key=os.environ["LLM_API_KEY"], base_url=os.environ.get("LLM_BASE_URL") or None
        )
        self._messages = [{"role": "system", "content": instructions}]

    def ask(self, text: str) -> str:
        self._messages.append({"role": "user", "content": text})
        answer = self._client.chat.completions.create(
            model=os.environ["LLM_MODEL"], messages=self._messages
        )
        said = answer.choices[0].message.content or ""
        self._messages.append({"role": "assistant", "content": said})
        return said

    def ask_for_code(self, text: str) -> str:
        """The first code block of the answer, or all of an answer without one."""
        said = self.ask(text)
        found = BLOCK.search(said)
        return found.group(1) if found else said
