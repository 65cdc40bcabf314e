"""What the server makes of bytes that say they are a kernel's message (server/reading.py)."""

import importlib.util
import json
import sys

import pytest
from jupyter_client.session import Session
from kernel_room import ROOT

SOURCE = ROOT / "src/alcove/images/code_interpreter/server/reading.py"


def _load():
    spec = importlib.util.spec_from_file_location("interpreter_reading", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


reading = _load()
KEY = b"the kernel's"


def frames(kind: str = "stream", key: bytes = KEY, **content: object) -> list[bytes]:
    session = Session(key=key)
    message = session.msg(kind, content, parent={"msg_id": "asked"})
    return session.serialize(message, ident=b"topic")


def test_a_message_is_read() -> None:
    message = reading.read(frames(text="ä\u2028"), Session(key=KEY))
    assert message["msg_type"] == message["header"]["msg_type"] == "stream"
    assert message["content"] == {"text": "ä\u2028"}
    assert message["parent_header"]["msg_id"] == "asked"
    assert isinstance(message["header"]["date"], str)


def test_buffers_after_the_message_are_no_part_of_it() -> None:
    message = reading.read([*frames(a=1), b"buffer", b"another"], Session(key=KEY))
    assert message["content"] == {"a": 1}


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        [b"<IDS|MSG>"],
        frames(key=b"another's"),
        frames()[:-1],
        [*frames()[:-1], b'{"a": 1}'],
        frames()[2:],
    ],
)
def test_anything_else_is_refused(wrong: list[bytes]) -> None:
    with pytest.raises(reading.UnreadableError):
        reading.read(wrong, Session(key=KEY))


@pytest.mark.parametrize("header", [b"{", b"[]", b"{}", b'"x"', b"[" * 100_000, b"\xff"])
def test_signed_nonsense_is_refused(header: bytes) -> None:
    session = Session(key=KEY)
    parts = [header, b"{}", b"{}", json.dumps({}).encode()]
    with pytest.raises(reading.UnreadableError):
        reading.read([b"<IDS|MSG>", session.sign(parts), *parts], session)
