"""Named and unnamed snapshots with the official Python SDK: templates made from a moment."""

import asyncio
import uuid
from collections.abc import Callable, Iterator

import pytest
from e2b import AsyncSandbox, NotFoundException, Sandbox, SandboxException, SnapshotInfo

from contract import witness
from stack import Stack

Make = Callable[..., Sandbox]
Take = Callable[..., SnapshotInfo]


@pytest.fixture
def take(stack: Stack) -> Iterator[Take]:
    """Take snapshots that are deleted after the test; ask for it before `make`.

    Fixtures end in the reverse order, and a snapshot stays while sandboxes made from it live.
    """
    taken: list[SnapshotInfo] = []

    def snapshot(sandbox: Sandbox, *arguments: str, **options: str) -> SnapshotInfo:
        taken.append(sandbox.create_snapshot(*arguments, **options))
        return taken[-1]

    yield snapshot
    for snapshot_id in {one.snapshot_id for one in taken}:
        Sandbox.delete_snapshot(snapshot_id)


def listed(**options: str) -> list[str]:
    pages, found = Sandbox.list_snapshots(**options), []
    while pages.has_next:
        found += [snapshot.snapshot_id for snapshot in pages.next_items()]
    return found


def test_a_snapshot_is_a_template(take: Take, make: Make, stack: Stack) -> None:
    source = make(timeout=600, envs={"COLOUR": "blue"})
    first = witness.start(source)
    source.files.write("state.txt", "before")
    snapshot = take(source)
    template_id, colon, tag = snapshot.snapshot_id.partition(":")
    assert all((template_id, colon, tag)), snapshot
    source.files.write("state.txt", "after")
    assert witness.ask(source).lasting() == first.lasting()
    source.kill()

    made = [make(template=snapshot.snapshot_id, envs={"SIZE": str(n)}) for n in range(2)]
    for number, sandbox in enumerate(made):
        assert sandbox.files.read("state.txt") == "before"
        assert witness.ask_by_edge(stack, sandbox).lasting() == first.lasting()
        # Those of the source stay, those of the request are added.
        told = sandbox.commands.run("echo $COLOUR $SIZE $E2B_SANDBOX_ID").stdout
        assert told == f"blue {number} {sandbox.sandbox_id}\n"
    made[0].files.write("state.txt", "mine")
    assert made[1].files.read("state.txt") == "before"
    made[0].pause()
    assert witness.ask(made[0].connect()).lasting() == first.lasting()


def test_a_snapshot_of_the_disk_only(take: Take, make: Make) -> None:
    source = make(timeout=600)
    first = witness.start(source)
    source.files.write("kept.txt", "yes")
    snapshot = take(source, mode="filesystem")
    # The contract: the source goes on, with its processes.
    assert witness.ask(source).lasting() == first.lasting()
    copy = make(template=snapshot.snapshot_id)
    assert copy.files.read("kept.txt") == "yes"
    assert copy.commands.run("pgrep -f '[w]itness' || echo none").stdout == "none\n"
    assert copy.commands.run("cat /proc/sys/kernel/random/boot_id").stdout.strip() != first.boot_id


def test_names_and_tags(take: Take, make: Make) -> None:
    source, name = make(timeout=600), f"snap-{uuid.uuid4().hex[:12]}"
    source.files.write("state.txt", "one")
    one = take(source, name)
    assert any(full.endswith(f"/{name}:default") for full in one.names), one
    source.files.write("state.txt", "two")
    two = take(source, f"{name}:second")
    assert two.snapshot_id != one.snapshot_id
    assert two.snapshot_id.endswith(":second")
    for reference, expected in (
        (one.snapshot_id, "one"),
        (name, "one"),
        (two.snapshot_id, "two"),
        (f"{name}:second", "two"),
    ):
        assert make(template=reference).files.read("state.txt") == expected, reference
    # A name that is there is given a new build.
    source.files.write("state.txt", "three")
    assert take(source, name).snapshot_id == one.snapshot_id
    assert make(template=name).files.read("state.txt") == "three"
    for found in (listed(name=name), listed(name=one.snapshot_id)):
        assert one.snapshot_id in found
    assert listed(name=f"{name}:second") == [two.snapshot_id]
    assert listed(name=f"{name}-of-nobody") == []


@pytest.mark.parametrize("name", ["not valid", "UPPER/case/three", "tail:", "other-team/name", "é"])
def test_bad_names_are_refused(make: Make, name: str) -> None:
    source = make()
    with pytest.raises(SandboxException, match="400"):
        source.create_snapshot(name)
    assert source.is_running()
    assert listed(sandbox_id=source.sandbox_id) == []


def test_a_name_of_a_built_template_is_not_taken(make: Make) -> None:
    source = make()
    with pytest.raises(SandboxException, match="(?i)base"):
        source.create_snapshot("base")
    assert make().commands.run("echo on").stdout == "on\n"


def test_lists_filter_and_page(take: Take, make: Make) -> None:
    left, right = make(timeout=600), make(timeout=600)
    of_left = [take(left).snapshot_id for _ in range(3)]
    (of_right,) = [take(right).snapshot_id]
    pages = left.list_snapshots(limit=2)
    first = [one.snapshot_id for one in pages.next_items()]
    assert pages.has_next
    second = [one.snapshot_id for one in pages.next_items()]
    assert not pages.has_next
    assert first + second == of_left[::-1]
    assert listed(sandbox_id=right.sandbox_id) == [of_right]
    assert set(listed()) >= {*of_left, of_right}
    assert listed(sandbox_id="i" + "0" * 20) == []


def test_delete_counts_references(make: Make, stack: Stack) -> None:
    source = make(timeout=600)
    source.files.write("state.txt", "kept")
    snapshot = source.create_snapshot()
    copy = make(template=snapshot.snapshot_id, timeout=600)
    with pytest.raises(Exception, match="(?i)sandbox"):
        Sandbox.delete_snapshot(snapshot.snapshot_id)
    copy.pause()
    with pytest.raises(Exception, match="(?i)sandbox"):
        Sandbox.delete_snapshot(snapshot.snapshot_id)
    assert copy.connect().files.read("state.txt") == "kept"
    copy.kill()
    assert Sandbox.delete_snapshot(snapshot.snapshot_id) is True
    assert Sandbox.delete_snapshot(snapshot.snapshot_id) is False
    assert listed(sandbox_id=source.sandbox_id) == []
    with pytest.raises((NotFoundException, SandboxException), match="404|not found"):
        Sandbox.create(snapshot.snapshot_id)
    assert source.files.read("state.txt") == "kept"


def test_what_cannot_be_snapshotted(make: Make) -> None:
    sandbox = make()
    sandbox.pause()
    with pytest.raises(SandboxException, match="409"):
        sandbox.create_snapshot()
    sandbox.kill()
    with pytest.raises(NotFoundException):
        sandbox.create_snapshot()


def test_templates_and_snapshots_are_told_apart(take: Take, make: Make, stack: Stack) -> None:
    snapshot = take(make(timeout=600), f"apart-{uuid.uuid4().hex[:8]}")
    template_id = snapshot.snapshot_id.rpartition("/")[2].partition(":")[0]
    shown = witness.api(stack, "GET", "/v2/templates").json()
    assert all(template_id not in {one["templateID"], *one["aliases"]} for one in shown)
    assert "base" not in " ".join(listed())


def test_the_asynchronous_client_takes_snapshots(stack: Stack) -> None:
    async def run() -> None:
        source = await AsyncSandbox.create(timeout=120)
        await source.files.write("state.txt", "before")
        snapshot = await source.create_snapshot()
        copy = await AsyncSandbox.create(snapshot.snapshot_id, timeout=60)
        assert await copy.files.read("state.txt") == "before"
        await copy.kill()
        await source.kill()
        assert await AsyncSandbox.delete_snapshot(snapshot.snapshot_id) is True

    asyncio.run(run())
