"""The API as a soak uses it: one attempt per request, and every answer is data."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from stack import Stack

NEXT_TOKEN = "X-Next-Token"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    """0: none came."""
    body: Any

    @property
    def good(self) -> bool:
        return 200 <= self.status < 300

    def __str__(self) -> str:
        said = self.body.get("message", self.body) if isinstance(self.body, dict) else self.body
        return f"{self.status} {said}"


class Api:
    def __init__(self, stack: Stack) -> None:
        self._client = httpx.Client(
            base_url=stack.api_url, headers={"X-API-KEY": stack.api_key}, timeout=90
        )

    def call(self, method: str, path: str, body: Any = None) -> Answer:
        try:
            answer = self._client.request(method, path, json=body)
            return Answer(answer.status_code, answer.json() if answer.content else None)
        except (httpx.HTTPError, ValueError) as error:
            return Answer(0, repr(error))

    def state(self, sandbox_id: str) -> Answer:
        return self.call("GET", f"/sandboxes/{sandbox_id}")

    def kill(self, sandbox_id: str) -> Answer:
        return self.call("DELETE", f"/sandboxes/{sandbox_id}")

    def connect(self, sandbox_id: str, timeout_s: int) -> Answer:
        return self.call("POST", f"/v2/sandboxes/{sandbox_id}/connect", {"timeout": timeout_s})

    def delete_snapshot(self, snapshot_id: str) -> Answer:
        return self.call("DELETE", f"/templates/{quote(snapshot_id, safe='')}")

    def sandbox_ids(self) -> list[str]:
        return [one["sandboxID"] for one in self._all("/v2/sandboxes?limit=100")]

    def snapshot_ids(self) -> list[str]:
        return [one["snapshotID"] for one in self._all("/snapshots?limit=100")]

    def _all(self, path: str) -> list[dict[str, Any]]:
        found, token = [], ""
        while True:
            answer = self._client.get(f"{path}&nextToken={token}")
            found += answer.raise_for_status().json()
            token = answer.headers.get(NEXT_TOKEN, "")
            if not token:
                return found
