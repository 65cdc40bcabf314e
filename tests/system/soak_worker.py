"""One worker of a soak: its sandboxes, what they must hold, and the steps it takes with them."""

import os
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from stack import Stack
from system import soak_autopsy as autopsy
from system import soak_ledger as ledger
from system.soak_api import Answer, Api
from system.soak_faults import DEATHS, DEATHS_AND_FULL_DISK, Faults
from system.soak_guest import Contents, Guest, UnreachableError
from system.soak_report import Report

SANDBOXES, CHECKPOINTS, CHILDREN = 3, 3, 3
LIFE_S, UNKNOWN_LIFE_S = 36_000, 600
PATIENCE_S = 90.0
WAKES = {"autoPause": True, "autoResume": {"enabled": True}}


@dataclass(slots=True)
class Kept:
    """A sandbox that must not be lost."""

    id: str
    contents: Contents
    paused: bool = False
    rebooted: bool = False
    """Its processes may have been ended: only its file must be right."""
    checkpoints: dict[str, Contents] = field(default_factory=dict)


class Worker(threading.Thread):
    def __init__(
        self,
        number: int,
        stack: Stack,
        guest: Guest,
        report: Report,
        faults: Faults,
        chance: random.Random,
    ) -> None:
        super().__init__(name=f"worker {number}", daemon=True)
        self.api = Api(stack)
        self._stack = stack
        self._guest = guest
        self._report = report
        self._faults = faults
        self._chance = chance
        self._kept: list[Kept] = []

    def run(self) -> None:
        cycles = {
            self._pause_and_resume: 8,
            self._expire_and_wake: 2,
            self._fork: 3,
            self._checkpoint: 3,
            self._roll_back: 3,
            self._create_from_checkpoint: 2,
            self._resume_damaged: 1,
        }
        while self._report.take_cycle():
            try:
                self._make_enough()
                sandbox = self._chance.choice(self._kept)
                step = self._chance.choices([*cycles], [*cycles.values()])[0]
                self._report.steps[step.__name__.strip("_")] += 1
                step(sandbox)
                if self._chance.random() < 0.1 and sandbox in self._kept:
                    self._kept.remove(sandbox)
                    self.end(sandbox.id)
            except Exception as error:
                self._report.found(self._report.unexpected, repr(error))

    def look_at_all(self) -> None:
        """Everything that was not killed must be there and right."""
        for sandbox in list(self._kept):
            self._bring_up(sandbox)

    def end(self, sandbox_id: str) -> None:
        """Kill a sandbox for good."""
        begun, deadline = time.monotonic(), time.monotonic() + PATIENCE_S
        while (answer := self.api.kill(sandbox_id)).status not in {204, 404}:
            self._expect_excuse(begun, f"kill of {sandbox_id}", answer)
            if time.monotonic() > deadline:
                self._report.found(self._report.unexpected, f"{sandbox_id} cannot be killed")
                return
            time.sleep(0.2)

    def look_at_stray(self, sandbox_id: str) -> None:
        """One whose making was not answered: made from another, it holds what that held."""
        detail = self.api.call("GET", f"/v1/sandboxes/{sandbox_id}")
        if not detail.good or detail.body["parentID"] is None:
            return  # its time is over, or nothing was put into it
        answer = self.api.connect(sandbox_id, UNKNOWN_LIFE_S)
        if answer.status in {404, 409}:
            return
        if not answer.good:
            self._report.found(self._report.unexpected, f"resume of {sandbox_id}: {answer}")
            return
        try:
            found = self._guest.look(sandbox_id)
            if found not in self._report.ever:
                text = f"{sandbox_id}, whom nobody knows, holds {found}"
                self._report.found(self._report.corrupted, text)
        except UnreachableError as error:
            file = autopsy.write(self._stack, sandbox_id, str(error))
            self._report.found(self._report.lost, f"{sandbox_id}: {error} ({file})")

    def _make_enough(self) -> None:
        while len(self._kept) < SANDBOXES:
            begun = time.monotonic()
            body = {"templateID": "base", "timeout": UNKNOWN_LIFE_S, **WAKES}
            body |= self._guest.create_fields()
            answer = self.api.call("POST", "/v2/sandboxes", body)
            if not answer.good:
                self._expect_excuse(begun, "create", answer)
                time.sleep(0.5)
                continue
            self._adopt(answer.body["sandboxID"], None)

    def _adopt(self, sandbox_id: str, expected: Contents | None) -> Kept:
        """Keep a sandbox from now on; without `expected` it is a new one."""
        self._report.known.add(sandbox_id)
        contents = self._guest.install(sandbox_id) if expected is None else expected
        sandbox = Kept(sandbox_id, contents)
        self._report.ever.add(contents)
        self._kept.append(sandbox)
        self._bring_up(sandbox)
        return sandbox

    def _pause_and_resume(self, sandbox: Kept) -> None:
        if self._chance.random() < 0.5:
            self._change(sandbox)
        memory = self._chance.random() < 0.85
        self._pause(sandbox, memory=memory)
        if self._chance.random() < 0.7:
            time.sleep(self._chance.uniform(0, 0.5))
            self._bring_up(sandbox)

    def _expire_and_wake(self, sandbox: Kept) -> None:
        """Its time is over, which pauses it; the next request to one of its ports is answered."""
        self._bring_up(sandbox)
        if sandbox not in self._kept:
            return
        begun = time.monotonic()
        answer = self.api.call("POST", f"/sandboxes/{sandbox.id}/timeout", {"timeout": 0})
        if not answer.good:
            self._expect_excuse(begun, "end of its time", answer)
        time.sleep(self._chance.uniform(0, 1.5))
        try:
            self._compare(sandbox, (sandbox.contents,))
        except UnreachableError as error:
            self._lose(sandbox, str(error))
            return
        self._bring_up(sandbox)

    def _pause(self, sandbox: Kept, *, memory: bool) -> bool:
        self._bring_up(sandbox)
        begun = time.monotonic()
        sandbox.rebooted = sandbox.rebooted or not memory
        answer = self.api.call("POST", f"/sandboxes/{sandbox.id}/pause", {"memory": memory})
        sandbox.paused = True  # or may be
        if not answer.good:
            self._expect_excuse(begun, "pause", answer, DEATHS_AND_FULL_DISK)
        return answer.good

    def _fork(self, sandbox: Kept) -> None:
        self._bring_up(sandbox)
        begun = time.monotonic()
        body = {"count": self._chance.randint(1, CHILDREN), "timeout": UNKNOWN_LIFE_S}
        answer = self.api.call("POST", f"/sandboxes/{sandbox.id}/fork", body)
        if not answer.good:
            self._expect_excuse(begun, "fork", answer, DEATHS_AND_FULL_DISK)
        for entry in answer.body if answer.good else ():
            if entry.get("sandbox") is None:
                error = entry["error"]
                self._expect_excuse(begun, "child", Answer(error["code"], error["message"]))
                continue
            child = self._adopt(entry["sandbox"]["sandboxID"], sandbox.contents)
            if len(self._kept) > SANDBOXES and child in self._kept:
                self._kept.remove(child)
                self.end(child.id)
        self._bring_up(sandbox)

    def _checkpoint(self, sandbox: Kept) -> None:
        self._bring_up(sandbox)
        self._change(sandbox)
        begun = time.monotonic()
        answer = self.api.call("POST", f"/sandboxes/{sandbox.id}/snapshots", {})
        if answer.good:
            sandbox.checkpoints[answer.body["snapshotID"]] = sandbox.contents
        else:
            self._expect_excuse(begun, "checkpoint", answer, DEATHS_AND_FULL_DISK)
        self._bring_up(sandbox)
        if len(sandbox.checkpoints) > CHECKPOINTS:
            oldest = next(iter(sandbox.checkpoints))
            del sandbox.checkpoints[oldest]
            begun = time.monotonic()
            answer = self.api.delete_snapshot(oldest)
            if answer.status != 204:
                self._expect_excuse(begun, "delete of a checkpoint", answer)

    def _roll_back(self, sandbox: Kept) -> None:
        if not sandbox.checkpoints:
            self._checkpoint(sandbox)
        if self._chance.random() < 0.7:
            self._bring_up(sandbox)
            self._change(sandbox)
        if not sandbox.checkpoints:
            return
        chosen, contents = self._chance.choice(list(sandbox.checkpoints.items()))
        before, begun = sandbox.contents, time.monotonic()
        path = f"/v1/sandboxes/{sandbox.id}/rollback"
        answer = self.api.call("POST", path, {"checkpoint": chosen, "timeout": LIFE_S})
        if answer.good:
            self._bring_up(sandbox, contents)
        else:
            self._expect_excuse(begun, "rollback", answer)
            self._bring_up(sandbox, before, contents)

    def _create_from_checkpoint(self, sandbox: Kept) -> None:
        if not sandbox.checkpoints:
            self._checkpoint(sandbox)
        if not sandbox.checkpoints:
            return
        chosen, contents = self._chance.choice(list(sandbox.checkpoints.items()))
        begun = time.monotonic()
        body = {"templateID": chosen, "timeout": UNKNOWN_LIFE_S}
        answer = self.api.call("POST", "/v2/sandboxes", body)
        if not answer.good:
            self._expect_excuse(begun, "create from a checkpoint", answer)
            return
        copy = self._adopt(answer.body["sandboxID"], contents)
        if copy in self._kept:
            self._kept.remove(copy)
            self.end(copy.id)

    def _resume_damaged(self, sandbox: Kept) -> None:
        """A throwaway child is paused and its snapshot damaged: it must be refused, and no more."""
        self._bring_up(sandbox)
        begun = time.monotonic()
        body = {"count": 1, "timeout": UNKNOWN_LIFE_S}
        answer = self.api.call("POST", f"/sandboxes/{sandbox.id}/fork", body)
        born = answer.good and answer.body[0].get("sandbox")
        if not born:
            self._expect_excuse(begun, "fork", answer, DEATHS_AND_FULL_DISK)
            return
        throwaway = Kept(born["sandboxID"], sandbox.contents)
        self._report.known.add(throwaway.id)
        if not self._pause(throwaway, memory=True):
            self.end(throwaway.id)
            return
        damage = self._damage(throwaway.id)
        answer = self.api.connect(throwaway.id, LIFE_S)
        if answer.good:
            self._report.found(self._report.corrupted, f"{throwaway.id} resumed after {damage}")
        elif answer.status != 0 and "damaged" not in str(answer):
            self._expect_excuse(begun, f"resume of a damaged snapshot ({damage})", answer)
        state = self.api.state(throwaway.id)
        if state.status == 404 or (state.good and state.body["state"] != "paused"):
            self._report.found(self._report.lost, f"{throwaway.id} after {damage}: {state}")
        self.end(throwaway.id)

    def _damage(self, sandbox_id: str) -> str:
        """Turn one bit of a file of its snapshot, or cut the file short."""
        folder = self._stack.data_dir / "snapshots" / ledger.snapshot_of(self._stack, sandbox_id)
        # Written after the answer; without them it counts as interrupted, which is no damage.
        while (folder / "data" / "checksums.owed").exists():
            time.sleep(0.05)
        files = [file for file in (folder / "data").rglob("*") if file.stat().st_size]
        file = self._chance.choice(sorted(files))
        before = file.stat()
        # A bit of a manifest's spaces means nothing, and one of its version another version.
        if file.suffix == ".json" or self._chance.random() < 0.3:
            os.truncate(file, self._chance.randrange(before.st_size))
            return f"cutting {file.name} short"
        _turn_bit(file, self._chance.randrange(before.st_size), self._chance.randrange(8))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        return f"turning a bit of {file.name}"

    def _change(self, sandbox: Kept) -> None:
        self._bring_up(sandbox)
        if sandbox in self._kept:
            sandbox.contents = self._guest.change(sandbox.id)
            self._report.ever.add(sandbox.contents)

    def _bring_up(self, sandbox: Kept, *allowed: Contents) -> None:
        """Resume it if it is paused, and compare what it holds; `allowed` in place of its own."""
        begun, deadline = time.monotonic(), time.monotonic() + PATIENCE_S
        while not (answer := self.api.connect(sandbox.id, LIFE_S)).good:
            if answer.status == 404:
                self._lose(sandbox, str(answer))
                return
            self._expect_excuse(begun, "resume", answer)
            if time.monotonic() > deadline:
                self._lose(sandbox, str(answer))
                return
            time.sleep(0.3)
        sandbox.paused = False
        try:
            self._compare(sandbox, allowed or (sandbox.contents,))
        except UnreachableError as error:
            self._lose(sandbox, str(error))

    def _compare(self, sandbox: Kept, allowed: tuple[Contents, ...]) -> None:
        if sandbox.rebooted:
            found = self._guest.install(sandbox.id)
            right = found.file in {one.file for one in allowed}
        else:
            found = self._guest.look(sandbox.id)
            right = found in allowed
        if not right:
            text = f"{sandbox.id} holds {found}, not {allowed}, rebooted={sandbox.rebooted}"
            text += f" ({autopsy.write(self._stack, sandbox.id, text)})"
            self._report.found(self._report.corrupted, text)
        sandbox.contents, sandbox.rebooted = found, False
        self._report.ever.add(found)

    def _lose(self, sandbox: Kept, why: str) -> None:
        file = autopsy.write(self._stack, sandbox.id, why)
        self._report.found(self._report.lost, f"{sandbox.id}: {why} ({file})")
        if sandbox in self._kept:
            self._kept.remove(sandbox)

    def _expect_excuse(
        self, begun: float, what: str, answer: Answer, kinds: frozenset[str] = DEATHS
    ) -> None:
        if self._faults.excuse(begun, kinds):
            self._report.excused[f"{what}: {answer.status}"] += 1
        else:
            self._report.found(self._report.unexpected, f"{what}: {answer}")


def _turn_bit(file: Path, at: int, bit: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        (byte,) = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte ^ (1 << bit)]))
