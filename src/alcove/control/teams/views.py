"""How API keys look on the wire."""

from typing import Any

from alcove.control.clock import rfc3339
from alcove.control.teams.store import ApiKey
from alcove.wire.tokens import API_KEY_PREFIX


def key_json(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "mask": {
            "prefix": API_KEY_PREFIX,
            "valueLength": 40,
            "maskedValuePrefix": key.masked_prefix,
            "maskedValueSuffix": key.masked_suffix,
        },
        "createdAt": rfc3339(key.created_at),
        "createdBy": None,
        "lastUsed": None if key.last_used_at is None else rfc3339(key.last_used_at),
    }
