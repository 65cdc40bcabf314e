"""The log of a template build (node/build_log.py)."""

from alcove.node.build_log import BuildLog


def messages(log):
    found = []
    while page := log.after(len(found)):
        found += page
    assert [entry.sequence for entry in found] == list(range(1, len(found) + 1))
    return [entry.message for entry in found]


def test_numbers_go_on_after_a_restart(tmp_path):
    BuildLog(tmp_path).add(1.0, "info", "one", step="base")
    log = BuildLog(tmp_path)
    log.add(2.0, "info", "two")
    assert messages(log) == ["one", "two"]
    assert log.after(0)[0].fields == {"step": "base"}
    assert log.after(1)[0].message == "two"


def test_a_torn_line_costs_itself_only(tmp_path):
    log = BuildLog(tmp_path)
    for text in ("one", "two"):
        log.add(1.0, "info", text)
    path = tmp_path / "log.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    log = BuildLog(tmp_path)
    log.add(1.0, "info", "three")
    assert messages(log) == messages(BuildLog(tmp_path)) == ["one", "three"]


def test_a_long_log_keeps_its_begin_and_its_end(tmp_path):
    log = BuildLog(tmp_path)
    lines = [f"{number} " + "é" * 500 for number in range(4000)]
    for line in lines:
        log.add(1.0, "info", line, step="3")
    assert log.latest().message == lines[-1]
    log.add(1.0, "error", "Build failed: exit status 1")
    seen = len(messages(log))
    log.finish()
    kept = messages(log)
    [where] = [n for n, line in enumerate(kept) if "lines are left out" in line]
    assert where == seen
    head, tail = kept[:where], kept[where + 1 :]
    assert head == lines[: len(head)]
    assert tail == [*lines[-len(tail) + 1 :], "Build failed: exit status 1"]
    assert kept[where].startswith(f"{len(lines) + 1 - len(head) - len(tail)} lines")
    assert (tmp_path / "log.jsonl").stat().st_size <= 2 << 20
    assert messages(BuildLog(tmp_path)) == kept


def test_a_log_that_fits_is_whole(tmp_path):
    log = BuildLog(tmp_path)
    log.add(1.0, "debug", "quiet")
    assert log.latest() is None
    log.add(1.0, "info", "x" * 9000)
    log.finish()
    assert [len(text) for text in messages(log)] == [5, 4096]
    assert BuildLog(tmp_path / "missing").after(0) == []
