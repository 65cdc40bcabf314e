"""Messages between control and node survive JSON, and a newer version's fields are ignored."""

import json
from typing import Any

import pytest

from alcove.wire.ids import BuildId, NodeId, SandboxId, TemplateId
from alcove.wire.node import (
    ImageReport,
    ImageSpec,
    LogEntry,
    NodeEvent,
    NodeReport,
    RecipeReport,
    SandboxReport,
    SandboxSpec,
    SandboxUsage,
)
from alcove.wire.states import BuildState, NodeSandboxState, StopReason

SANDBOX, BUILD, TEMPLATE = SandboxId("iabc"), BuildId("b"), TemplateId("t")
RECIPES = [RecipeReport("base", ["base"], 2, 512, 1024)]
MESSAGES: list[Any] = [
    SandboxSpec(SANDBOX, 1, TEMPLATE, BUILD, "token", 2, 512, 1024, {"A": "ü"}, internet=False),
    SandboxReport(SANDBOX, 2, NodeSandboxState.RUNNING, "fake", "none", started_at=1.5),
    SandboxReport(
        SANDBOX,
        2,
        NodeSandboxState.STOPPED,
        "fake",
        "none",
        stop_reason=StopReason.KILLED,
        timings_ms={"restore": 1.0},
    ),
    SandboxUsage(1.0, 2, 50.0, 3.5, 1, 2, 3, 4, 5),
    ImageSpec(BUILD, TEMPLATE, "base", 2, 512, 1024),
    ImageReport(BUILD, TEMPLATE, "base", BuildState.READY, 2, 512, 1024),
    LogEntry(1, 2.0, "info", "text", {"k": "v"}),
    NodeReport(NodeId("n"), "0", "fake", "none", [], RECIPES, 2, 1, 1, 1, 0, 0, ready=True),
    NodeEvent(1, 2.0, "hello"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_message_survives_json(message: Any) -> None:
    sent = json.loads(json.dumps(message.to_json() | {"from_the_future": 1}))
    assert type(message).from_json(sent) == message


def test_states_come_back_as_states() -> None:
    sent = json.loads(json.dumps(MESSAGES[2].to_json()))
    report = SandboxReport.from_json(sent)
    assert report.state is NodeSandboxState.STOPPED
    assert report.stop_reason is StopReason.KILLED
