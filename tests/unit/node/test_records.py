"""Records of sandboxes on disk (node/records.py), and what is forgotten when."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.node.records import KEPT_STOPPED, KEPT_STOPPED_S, Record, Records, surplus
from alcove.wire.ids import BuildId, SandboxId, TemplateId
from alcove.wire.node import SandboxSpec
from alcove.wire.states import NodeSandboxState as State
from alcove.wire.states import StopReason


def spec(sandbox_id: str = "i1") -> SandboxSpec:
    return SandboxSpec(
        sandbox_id=SandboxId(sandbox_id),
        generation=3,
        template_id=TemplateId("t"),
        build_id=BuildId("b"),
        access_token="secret",
        vcpu_count=2,
        memory_mib=512,
        disk_mib=1024,
        env_vars={"A": "ä"},
        internet=False,
    )


def record(sandbox_id: str = "i1", **changes) -> Record:
    first = Record(spec(sandbox_id), State.STARTING, "fake", "none", created_at=5.0)
    return replace(first, **changes)


def test_what_was_written_is_read(tmp_path):
    records = Records(tmp_path / "sandboxes")
    written = record(
        state=State.STOPPED,
        slot=7,
        started_at=6.0,
        stopped_at=7.0,
        stop_reason=StopReason.EXITED,
        detail="exit 0",
        timings_ms={"restore": 30.5},
    )
    records.write(written)
    assert records.read_all() == [written]


def test_a_write_replaces_and_leaves_no_draft(tmp_path):
    records = Records(tmp_path)
    records.write(record())
    records.write(record(slot=1))
    assert [r.slot for r in records.read_all()] == [1]
    assert [p.name for p in (tmp_path / "i1").iterdir()] == ["record.json"]


def test_only_root_may_read_a_record_because_it_has_the_token(tmp_path):
    records = Records(tmp_path)
    records.write(record())
    assert (tmp_path / "i1").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "i1" / "record.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": 2}', '{"format": 1, "state": "running"}', "\x00"]
)
def test_what_cannot_be_read_is_dropped_and_the_rest_kept(tmp_path, text):
    records = Records(tmp_path)
    records.write(record("i1"))
    records.write(record("i2"))
    (tmp_path / "i1" / "record.json").write_text(text)
    assert [r.sandbox_id for r in records.read_all()] == ["i2"]
    assert not (tmp_path / "i1").exists()


def test_a_directory_that_a_crash_left_without_a_record_is_removed(tmp_path):
    (tmp_path / "i3").mkdir()
    assert Records(tmp_path).read_all() == []
    assert not (tmp_path / "i3").exists()


@given(st.data())
def test_any_torn_record_is_dropped_not_misread(tmp_path_factory, data):
    tmp_path = tmp_path_factory.mktemp("torn")
    records = Records(tmp_path)
    records.write(record(slot=12))
    path = tmp_path / "i1" / "record.json"
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert records.read_all() == []


def test_fields_of_a_later_version_refuse_the_record(tmp_path):
    records = Records(tmp_path)
    records.write(record())
    path = tmp_path / "i1" / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"new": 1}))
    assert records.read_all() == []


def test_the_report_says_what_the_record_knows():
    report = record(state=State.RUNNING, started_at=6.0).report()
    assert (report.sandbox_id, report.generation, report.state) == ("i1", 3, State.RUNNING)
    assert (report.driver, report.isolation, report.started_at) == ("fake", "none", 6.0)


def test_stopped_sandboxes_are_forgotten_by_age_and_number_the_oldest_first():
    now = 1e6
    stopped = [
        record(f"i{n}", state=State.STOPPED, stopped_at=now - n) for n in range(KEPT_STOPPED + 2)
    ]
    old = record("old", state=State.STOPPED, stopped_at=now - KEPT_STOPPED_S - 1)
    running = record("run", state=State.RUNNING, created_at=0.0)
    forgotten = surplus([*stopped, old, running], now)
    assert set(forgotten) == {"old", f"i{KEPT_STOPPED}", f"i{KEPT_STOPPED + 1}"}
