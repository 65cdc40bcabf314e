"""Many timelines of one sandbox, with the official Python SDK: deep, wide, and idle ones."""

import time
from collections.abc import Callable

import pytest
from e2b import Sandbox

from contract import witness
from stack import Stack

pytestmark = pytest.mark.timeout(600)

Make = Callable[..., Sandbox]

COUNTING = """
import sys, time
number = int(sys.argv[1])
while True:
    number += 1
    with open("/dev/shm/number", "w") as file:
        file.write(str(number))
    time.sleep(0.05)
"""
IDLE_S = 10


def born(results: list[object]) -> list[Sandbox]:
    children = [child for child in results if isinstance(child, Sandbox)]
    assert len(children) == len(results), results
    return children


def number(sandbox: Sandbox) -> int:
    return int(sandbox.commands.run("cat /dev/shm/number").stdout or 0)


def test_variables_processes_and_files_in_memory_are_cloned_and_diverge(make: Make) -> None:
    parent = make(timeout=600)
    parent.files.write("count.py", COUNTING)
    counting = parent.commands.run("python3 count.py 1000", background=True, timeout=0)
    parent.commands.run("until [ -s /dev/shm/number ]; do sleep 0.05; done")
    parent.commands.run("echo shared >/dev/shm/note")
    before = number(parent)
    children = born(parent.fork(count=2, timeout=300))
    for child in children:
        with child:
            assert child.commands.run("cat /dev/shm/note").stdout == "shared\n"
            assert [one.pid for one in child.commands.list()] == [counting.pid]
            reached = number(child)
            assert reached >= before > 1000
            witness.eventually(lambda child=child, reached=reached: number(child) > reached)
            child.commands.run(f"echo {child.sandbox_id} >/dev/shm/note")
            assert child.commands.kill(counting.pid) is True
    assert parent.commands.run("cat /dev/shm/note").stdout == "shared\n"
    reached = number(parent)
    witness.eventually(lambda: number(parent) > reached)


def test_ten_children_of_one_snapshot(make: Make, stack: Stack) -> None:
    parent = make(timeout=600)
    first = witness.start(parent)
    children = born(parent.fork(count=10, timeout=600))
    family = [parent, *children]
    told = [witness.ask(one) for one in family]
    for child in children:
        child.kill()
    assert {one.lasting() for one in told} == {first.lasting()}
    for own in ("boot_id", "hostname", "getrandom"):
        assert len({getattr(one, own) for one in told}) == 11, own
    assert len({one.sandbox_id for one in family}) == 11
    assert len({one._envd_access_token for one in family}) == 11
    tree = witness.api(stack, "GET", f"/v1/sandboxes/{parent.sandbox_id}/tree").json()
    origins = {one["originSnapshotID"] for one in tree["sandboxes"] if one["parentID"]}
    assert len(origins) == 1


def test_ten_generations_and_the_way_back(make: Make, stack: Stack) -> None:
    """Each is a child of the one before, goes on alone, and can still be taken back."""
    current = make(timeout=600)
    first = witness.start(current)
    line = [current.sandbox_id]
    for depth in range(1, 11):
        current.commands.run(f"echo {depth} >>path.txt")
        (child,) = born(current.fork(timeout=600))
        if depth > 1:
            current.kill()
        current = child
        line.append(current.sandbox_id)
    try:
        assert witness.ask(current).lasting() == first.lasting()
        assert current.files.read("path.txt").split() == [str(n) for n in range(1, 11)]
        path = f"/v1/sandboxes/{current.sandbox_id}"
        tree = witness.api(stack, "GET", f"{path}/tree").json()
        shown = {one["sandboxID"]: one for one in tree["sandboxes"]}
        assert [shown[one]["depth"] for one in line] == list(range(11))
        assert [shown[one]["parentID"] for one in line[1:]] == line[:-1]

        checkpoint = current.create_snapshot()
        current.commands.run("echo astray >>path.txt; pkill -f witness.py")
        body = {"checkpoint": checkpoint.snapshot_id}
        assert witness.api(stack, "POST", f"{path}/rollback", body).status_code == 201
        assert current.files.read("path.txt").split() == [str(n) for n in range(1, 11)]
        assert witness.ask(current).lasting() == first.lasting()
    finally:
        current.kill()
    assert Sandbox.delete_snapshot(checkpoint.snapshot_id) is True


def test_one_that_is_idle_is_paused_and_woken(make: Make, stack: Stack) -> None:
    sandbox = make(
        timeout=600,
        metadata={"idle_timeout": str(IDLE_S)},
        lifecycle={"on_timeout": "pause", "auto_resume": True},
    )
    first = witness.start(sandbox)
    path = f"/v1/sandboxes/{sandbox.sandbox_id}"
    # It is in use while it is asked, for longer than it may be idle.
    end = time.monotonic() + IDLE_S + 2
    while time.monotonic() < end:
        assert witness.ask_by_edge(stack, sandbox).lasting() == first.lasting()
        time.sleep(0.5)
    assert witness.api(stack, "GET", path).json()["state"] == "running"
    witness.eventually(
        lambda: witness.api(stack, "GET", path).json()["state"] == "paused", timeout_s=120
    )
    assert witness.api(stack, "GET", path).json()["pause"]["reason"] == "idle"
    assert witness.ask_by_edge(stack, sandbox).lasting() == first.lasting()
    assert sandbox.get_info().state.value == "running"
