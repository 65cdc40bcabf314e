"""POST /reboot: what runs ends, what is only in memory goes, the disk and the agent stay."""

import os
import time

from guest_agent import Agent


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_everything_ends_and_its_clients_are_told(own_agent: Agent) -> None:
    plain = own_agent.start("/bin/sh", "-c", "sleep 100 & echo $!; trap '' TERM HUP; wait")
    plain.until_stdout(b"\n")
    terminal = own_agent.start("/bin/cat", pty={"size": {"cols": 80, "rows": 24}}, stdin=True)
    terminal.next()
    # An orphan, out of its session and process group.
    hidden = own_agent.run("setsid sh -c 'sleep 100 >/dev/null 2>&1 & echo $!'")
    pids = [plain.result.pid, int(plain.result.stdout), terminal.result.pid, int(hidden.stdout)]
    assert all(alive(pid) for pid in pids)
    answer = own_agent.request("POST", "/reboot")
    assert answer.status == 200
    assert answer.json["ended"] >= len(pids)
    assert not any(alive(pid) for pid in pids)
    for stream in (plain, terminal):
        ended = stream.rest().end
        assert ended is not None
        assert ended["status"] == "signal: killed"
    assert own_agent.unary("List", {}).json == {"processes": []}
    assert own_agent.unary("Connect", {"process": {"pid": pids[0]}}).status != 200
    assert own_agent.run("echo after").stdout == b"after\n"


def test_what_is_in_memory_goes_and_the_disk_stays(own_agent: Agent) -> None:
    shared = own_agent.root / "dev/shm"
    kept = own_agent.root / "tmp/file"
    for path in (shared / "deep/file", shared / "file", own_agent.root / "run/user/1000/x", kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (shared / "link").symlink_to(kept)
    assert own_agent.request("POST", "/reboot").json == {"ended": 0}
    assert list(shared.iterdir()) == []
    assert list((own_agent.root / "run/user").iterdir()) == []
    assert kept.read_text() == "x"


def test_watchers_are_gone(own_agent: Agent) -> None:
    made = own_agent.request(
        "POST",
        "/filesystem.Filesystem/CreateWatcher",
        b'{"path": "/tmp"}',
        {"content-type": "application/json"},
    ).json["watcherId"]
    own_agent.request("POST", "/reboot")
    answer = own_agent.request(
        "POST",
        "/filesystem.Filesystem/GetWatcherEvents",
        b'{"watcherId": "%s"}' % made.encode(),
        {"content-type": "application/json"},
    )
    assert answer.json["code"] == "not_found"


def test_a_crowd_that_breeds_is_ended_too(own_agent: Agent) -> None:
    script = "for i in 1 2 3 4 5; do (while :; do sleep 0.01 & done) & done; wait"
    crowd = own_agent.start("/bin/sh", "-c", script)
    crowd.next()
    time.sleep(0.3)
    assert own_agent.request("POST", "/reboot").json["ended"] > 5
    assert own_agent.unary("List", {}).json == {"processes": []}
