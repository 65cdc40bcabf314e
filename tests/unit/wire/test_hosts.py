"""Names of sandbox ports: what is built reads back; the rest is refused in the contract's words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.wire.hosts import (
    MAX_PORT,
    InvalidHostError,
    PortOfSandbox,
    host_of,
    parse_host,
    parse_port_and_id,
)
from alcove.wire.ids import SandboxId, new_sandbox_id

_WORDS = {"Invalid host", "Invalid sandbox port", "Invalid sandbox ID"}
_ids = st.from_regex(r"[a-z0-9]{1,40}", fullmatch=True).map(SandboxId)
_ports = st.integers(1, MAX_PORT)


@given(_ids, _ports, st.from_regex(r"[a-z0-9]{1,10}(\.[a-z0-9]{1,10}){0,3}", fullmatch=True))
def test_what_is_built_reads_back(sandbox_id: SandboxId, port: int, domain: str) -> None:
    assert parse_host(host_of(sandbox_id, port, domain)) == PortOfSandbox(sandbox_id, port)


@given(_ids, _ports)
def test_a_client_id_is_ignored(sandbox_id: SandboxId, port: int) -> None:
    assert parse_host(f"{port}-{sandbox_id}-6532622b.x") == PortOfSandbox(sandbox_id, port)
    assert parse_port_and_id(str(port), f"{sandbox_id}-6532622b").sandbox_id == sandbox_id


@given(st.text(max_size=80))
def test_any_text_is_a_host_or_refused_in_the_contracts_words(text: str) -> None:
    try:
        found = parse_host(text)
    except InvalidHostError as error:
        words = str(error)
    else:
        words = ""
        assert 1 <= found.port <= MAX_PORT
        assert found.sandbox_id.isascii()
        assert found.sandbox_id.isalnum()
    assert words in _WORDS | {""}


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("", "Invalid host"),
        ("8000-i1", "Invalid host"),
        ("localhost", "Invalid host"),
        ("i1.x", "Invalid host"),
        ("1-2-3-4.x", "Invalid host"),
        ("0-i1.x", "Invalid sandbox port"),
        ("65536-i1.x", "Invalid sandbox port"),
        ("-i1.x", "Invalid sandbox port"),
        ("+1-i1.x", "Invalid sandbox port"),
        ("1_0-i1.x", "Invalid sandbox port"),
        ("\u0661-i1.x", "Invalid sandbox port"),  # a digit, but not of ASCII
        ("000080-i1.x", "Invalid sandbox port"),
        ("80-.x", "Invalid sandbox ID"),
        ("80-I1.x", "Invalid sandbox ID"),
        ("80-i_1.x", "Invalid sandbox ID"),
        ("80-" + "a" * 65 + ".x", "Invalid sandbox ID"),
    ],
)
def test_refusals(host: str, words: str) -> None:
    with pytest.raises(InvalidHostError, match=rf"\A{words}\Z"):
        parse_host(host)


def test_new_ids_make_valid_host_labels() -> None:
    label = host_of(new_sandbox_id(), MAX_PORT, "x").partition(".")[0]
    assert len(label) <= 63
    assert parse_host(label + ".x").port == MAX_PORT
