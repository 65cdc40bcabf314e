"""The log of a sandbox (node/logs.py)."""

from alcove.node.logs import SandboxLog


def test_numbers_go_on_after_a_restart(tmp_path):
    SandboxLog(tmp_path).add(1.0, "info", "started", slot="1")
    log = SandboxLog(tmp_path)
    log.add(2.0, "info", "stopped")
    assert [(e.sequence, e.message) for e in log.after(0)] == [(1, "started"), (2, "stopped")]
    assert [e.message for e in log.after(1)] == ["stopped"]


def test_a_torn_line_is_skipped(tmp_path):
    log = SandboxLog(tmp_path)
    log.add(1.0, "info", "one")
    log.add(1.0, "info", "two")
    path = tmp_path / "log.jsonl"
    path.write_text(path.read_text()[:-9])
    assert [e.message for e in SandboxLog(tmp_path).after(0)] == ["one"]


def test_a_log_stays_bounded_and_keeps_its_end(tmp_path):
    log = SandboxLog(tmp_path)
    for number in range(5000):
        log.add(1.0, "info", str(number))
    read = SandboxLog(tmp_path)
    assert read.after(4990)[-1].message == "4999"
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) <= 2000


def test_the_end_of_the_console_is_kept(tmp_path):
    console = tmp_path / "console"
    console.write_bytes(b"x" * 200_000 + b"end")
    SandboxLog(tmp_path).save_console(console)
    saved = (tmp_path / "console.log").read_bytes()
    assert saved.endswith(b"end")
    assert len(saved) <= 64 * 1024


def test_no_console_is_no_harm(tmp_path):
    SandboxLog(tmp_path).save_console(tmp_path / "missing")
    assert not (tmp_path / "console.log").exists()
