"""How events look on the wire."""

from typing import Any

from alcove.control.clock import rfc3339
from alcove.control.events import store


def event_json(event: store.Event) -> dict[str, Any]:
    return {
        "id": event.id,
        "timestamp": rfc3339(event.at),
        "type": event.kind.value,
        "sandboxID": event.sandbox_id,
        "data": event.data,
    }
