"""Both codecs and malformed calls, against a real agent; protobuf made by the official client."""

import gzip
import json

import pytest
from e2b.envd.process import process_pb
from guest_agent import Agent, envelope
from protobuf import Oneof


def post(agent: Agent, path: str, body: bytes, content_type: str, **headers: str) -> bytes:
    named = {"content-type": content_type} | {k.replace("_", "-"): v for k, v in headers.items()}
    answer = agent.request("POST", f"/process.Process/{path}", body, named)
    return answer.body


def start_request() -> process_pb.StartRequest:
    config = process_pb.ProcessConfig(
        cmd="/bin/sh", args=["-c", "echo $X; head -c 5000 /dev/zero; exit 9"], envs={"X": "proto"}
    )
    return process_pb.StartRequest(process=config, stdin=False)


def events(body: bytes) -> list[process_pb.ProcessEvent]:
    found = []
    while body:
        flags, length = body[0], int.from_bytes(body[1:5], "big")
        payload, body = body[5 : 5 + length], body[5 + length :]
        if flags & 2:
            assert (payload, body) == (b"{}", b"")
            break
        if flags & 1:
            payload = gzip.decompress(payload)
        event = process_pb.StartResponse.from_binary(payload).event
        assert event is not None
        found.append(event)
    return found


@pytest.mark.parametrize("accept", ["", "gzip"])
def test_a_command_over_protobuf(agent: Agent, accept: str) -> None:
    body = post(
        agent,
        "Start",
        envelope(start_request().to_binary()),
        "application/connect+proto",
        connect_accept_encoding=accept,
    )
    kinds = [event.event for event in events(body)]
    assert next(kind.field for kind in kinds if kind) == "start"
    output = b"".join(kind.value.output.value for kind in kinds if kind and kind.field == "data")
    assert output == b"proto\n" + bytes(5000)
    last = kinds[-1]
    assert last is not None
    assert last.field == "end"
    assert (last.value.exit_code, last.value.error) == (9, "exit status 9")


def test_unary_calls_over_protobuf(agent: Agent) -> None:
    answer = post(agent, "List", b"", "application/proto")
    assert process_pb.ListResponse.from_binary(answer).processes == []
    request = process_pb.SendSignalRequest(
        process=process_pb.ProcessSelector(selector=Oneof("pid", 4_000_000)),
        signal=process_pb.Signal.SIGKILL,
    )
    error = json.loads(post(agent, "SendSignal", request.to_binary(), "application/proto"))
    assert error["code"] == "not_found"


def test_a_request_stream_may_be_compressed(agent: Agent) -> None:
    body = envelope(gzip.compress(start_request().to_binary()), flags=1)
    answer = post(
        agent, "Start", body, "application/connect+proto", connect_content_encoding="gzip"
    )
    assert events(answer)


def stream_error(agent: Agent, body: bytes) -> dict[str, str]:
    answer = post(agent, "Start", body, "application/connect+json")
    assert answer[0] == 2
    error: dict[str, str] = json.loads(answer[5:])["error"]
    return error


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_argument"),
        (b"\x00", "invalid_argument"),
        (envelope(b"{}")[:-1], "invalid_argument"),
        (envelope(b"not json"), "invalid_argument"),
        (envelope(b"[]"), "invalid_argument"),
        (envelope(b"{}"), "invalid_argument"),
        (envelope(b"{}") * 2, "invalid_argument"),
        (envelope(b'{"process":{"cmd":7}}'), "invalid_argument"),
        (envelope(b'{"process":{"cmd":"\\ud800"}}'), "invalid_argument"),
        (envelope(b"[" * 100_000), "invalid_argument"),
        (envelope(b"{}", flags=0x80), "invalid_argument"),
        (envelope(b"{}", flags=1), "unimplemented"),
        (b"\x00\xff\xff\xff\xff", "resource_exhausted"),
    ],
)
def test_malformed_streams_end_with_an_error(agent: Agent, body: bytes, code: str) -> None:
    assert stream_error(agent, body)["code"] == code


def test_both_spellings_of_names_and_unknown_fields_are_taken(agent: Agent) -> None:
    message = {"process": {"pid": 4_000_000, "new": 1}, "signal": 9, "newer": {}}
    answer = agent.unary("SendSignal", message)
    assert answer.json["code"] == "not_found"


def test_other_content_types_are_refused(agent: Agent) -> None:
    answer = agent.request("POST", "/process.Process/List", b"{}", {"content-type": "text/plain"})
    assert (answer.status, answer.json["code"]) == (415, 415)


def test_unknown_methods_are_not_found(agent: Agent) -> None:
    assert agent.unary("Explode", {}).status == 404
