"""Messages in binary and JSON: round trips, malformed input, and agreement with protoc's tables."""

import contextlib
import json
from typing import Any

import pytest
from e2b.envd.filesystem import filesystem_pb
from e2b.envd.process import process_pb
from hypothesis import given
from hypothesis import strategies as st

from alcove.wire import filesystem, messages, process, protobuf
from alcove.wire.messages import Field, Kind, MalformedMessageError, Message

TEXT = st.text(max_size=20).filter(lambda text: text.isprintable() or not text)
COMMON = Message(
    "Everything",
    (
        Field(1, "text", Kind.STRING),
        Field(2, "raw", Kind.BYTES),
        Field(3, "yes", Kind.BOOL),
        Field(4, "small", Kind.UINT32),
        Field(5, "signed", Kind.SINT32),
        Field(6, "large", Kind.INT64),
        Field(7, "signal", Kind.ENUM, values=process.SIGNALS),
        Field(8, "child", Kind.MESSAGE, Message("Child", (Field(1, "text", Kind.STRING),))),
        Field(9, "map", Kind.STRING_MAP),
        Field(10, "manyTexts", Kind.STRING, repeated=True),
        Field(11, "manyNumbers", Kind.UINT32, repeated=True),
        Field(12, "at", Kind.TIMESTAMP),
        Field(13, "left", Kind.STRING, oneof="side"),
        Field(14, "right", Kind.UINT32, oneof="side"),
    ),
)
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "text": st.text(min_size=1, max_size=20),
        "raw": st.binary(min_size=1, max_size=20),
        "yes": st.just(value=True),
        "small": st.integers(1, 2**32 - 1),
        "signed": st.integers(-(2**31), 2**31 - 1).filter(bool),
        "large": st.integers(-(2**63), 2**63 - 1).filter(bool),
        "signal": st.sampled_from(["SIGNAL_SIGKILL", "SIGNAL_SIGTERM"]),
        "child": st.fixed_dictionaries({}, optional={"text": st.text(min_size=1, max_size=5)}),
        "map": st.dictionaries(TEXT, TEXT, min_size=1, max_size=4),
        "manyTexts": st.lists(TEXT, min_size=1, max_size=4),
        "manyNumbers": st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4),
        "at": st.datetimes().map(
            lambda at: at.strftime("%Y").zfill(4) + at.strftime("-%m-%dT%H:%M:%SZ")
        ),
    },
)
ONEOF = st.one_of(
    st.just({}),
    st.builds(lambda text: {"left": text}, TEXT),
    st.builds(lambda number: {"right": number}, st.integers(0, 9)),
)


@given(VALUES, ONEOF)
def test_binary_round_trip(value: dict[str, Any], side: dict[str, Any]) -> None:
    whole = value | side
    assert protobuf.decode(COMMON, protobuf.encode(COMMON, whole)) == whole


@given(VALUES, ONEOF)
def test_json_round_trip(value: dict[str, Any], side: dict[str, Any]) -> None:
    whole = value | side
    assert messages.parse_json(COMMON, messages.to_json(whole)) == whole


@given(st.binary(max_size=100))
def test_any_bytes_are_a_message_or_an_error(data: bytes) -> None:
    try:
        value = protobuf.decode(COMMON, data)
    except MalformedMessageError:
        return
    protobuf.decode(COMMON, protobuf.encode(COMMON, value))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(sorted(COMMON.by_name)), inner, max_size=5)
    ),
    max_leaves=8,
)


@given(JSON_VALUES)
def test_any_json_is_a_message_or_an_error(value: Any) -> None:
    with contextlib.suppress(MalformedMessageError):
        messages.from_json(COMMON, value)


@given(st.binary(max_size=60))
def test_any_text_is_a_message_or_an_error(data: bytes) -> None:
    with contextlib.suppress(MalformedMessageError):
        messages.parse_json(COMMON, data)


def test_unknown_fields_are_skipped_whatever_their_type() -> None:
    unknown = b"\xf8\x01\x05" + b"\xfa\x01\x02hi" + b"\xf9\x01" + bytes(8) + b"\xfd\x01" + bytes(4)
    assert protobuf.decode(COMMON, unknown + b"\x0a\x01x" + unknown) == {"text": "x"}


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",  # no length
        b"\x0a\x05ab",  # shorter than its length
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # absurd length
        b"\x20" + b"\xff" * 11,  # endless number
        b"\x08\x01",  # a text sent as number
        b"\x0a\x02\xff\xfe",  # not UTF-8
        b"\x0b\x0c",  # groups
        b"\x00\x00",  # field number zero
        b"\x62\x06\x10\x80\x94\xeb\xdc\x04",  # 1.3 billion nanoseconds
        b"\x62\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\x7f",  # outside the calendar
    ],
)
def test_malformed_binary_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        protobuf.decode(COMMON, data)


def test_json_names_numbers_and_enums_have_two_forms() -> None:
    text = b'{"many_texts":["a"],"large":"-5","small":7.0,"signal":9,"raw":"_-8"}'
    assert messages.parse_json(COMMON, text) == {
        "manyTexts": ["a"],
        "large": -5,
        "small": 7,
        "signal": "SIGNAL_SIGKILL",
        "raw": b"\xff\xef",
    }


def test_two_fields_of_a_oneof_are_refused_in_json_and_the_last_wins_in_binary() -> None:
    with pytest.raises(MalformedMessageError, match="both left and right"):
        messages.parse_json(COMMON, b'{"left":"a","right":1}')
    assert protobuf.decode(COMMON, b"\x6a\x01a\x70\x01") == {"right": 1}


PROCESS_SAMPLES = [
    (process.START.request, process_pb.StartRequest, {
        "process": {"cmd": "c", "args": ["a", ""], "envs": {"K": "v"}, "cwd": ""},
        "pty": {"size": {"cols": 300, "rows": 1}}, "tag": "t", "stdin": False,
    }),
    (process.START.response, process_pb.StartResponse,
     {"event": {"data": {"pty": b"\x00\xff"}}}),
    (process.START.response, process_pb.StartResponse,
     {"event": {"end": {"exitCode": -1, "exited": True, "status": "s", "error": ""}}}),
    (process.START.response, process_pb.StartResponse, {"event": {"keepalive": {}}}),
    (process.LIST.response, process_pb.ListResponse,
     {"processes": [{"config": {"cmd": "c"}, "pid": 9, "tag": "x"}, {"pid": 1}]}),
    (process.STREAM_INPUT.request, process_pb.StreamInputRequest,
     {"data": {"input": {"stdin": b"abc"}}}),
    (process.STREAM_INPUT.request, process_pb.StreamInputRequest,
     {"start": {"process": {"tag": "t"}}}),
    (process.SEND_SIGNAL.request, process_pb.SendSignalRequest,
     {"process": {"pid": 2}, "signal": "SIGNAL_SIGTERM"}),
    (process.UPDATE.request, process_pb.UpdateRequest,
     {"process": {"pid": 2}, "pty": {"size": {"cols": 1}}}),
    (filesystem.STAT.response, filesystem_pb.StatResponse, {"entry": {
        "name": "n", "type": "FILE_TYPE_DIRECTORY", "path": "/n", "size": 2**40, "mode": 493,
        "permissions": "drwx", "owner": "o", "group": "g",
        "modifiedTime": "2026-01-02T03:04:05.500Z", "symlinkTarget": "/t",
        "metadata": {"k": "v"},
    }}),
    (filesystem.WATCH_DIR.response, filesystem_pb.WatchDirResponse,
     {"filesystem": {"name": "f", "type": "EVENT_TYPE_CHMOD", "entry": {"name": "f"}}}),
    (filesystem.CREATE_WATCHER.request, filesystem_pb.CreateWatcherRequest,
     {"path": "/", "recursive": True, "includeEntry": True, "allowNetworkMounts": True}),
    (filesystem.GET_WATCHER_EVENTS.response, filesystem_pb.GetWatcherEventsResponse,
     {"events": [{"name": "a", "type": "EVENT_TYPE_WRITE"}]}),
]  # fmt: skip


@pytest.mark.parametrize(("table", "official", "value"), PROCESS_SAMPLES)
def test_tables_agree_with_the_official_client(
    table: Message, official: Any, value: dict[str, Any]
) -> None:
    theirs = official.from_binary(protobuf.encode(table, value))
    assert protobuf.decode(table, theirs.to_binary()) == value
    assert messages.parse_json(table, theirs.to_json().encode()) == value
    assert official.from_json(messages.to_json(value).decode()).to_binary() == theirs.to_binary()
    assert json.loads(theirs.to_json())
