"""A soak of time travel: random steps on random sandboxes while everything around them dies.

    cd tests; python -m system.soak --driver gvisor --cycles 1000 --seed 7

Each worker owns a few sandboxes, remembers what each must hold, and looks after every step. Steps
that meet a fault may fail, but must leave the sandbox as it was or as it was to become. A cycle is
a pause with its resume, asked for or by the end of its time and traffic, a fork, a checkpoint, a
rollback, or a sandbox made from a snapshot.
"""

import argparse
import json
import os
import random
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import stack as stacks
from system import soak_ledger as ledger
from system.soak_faults import Faults, small_disk
from system.soak_guest import FakeGuest, GvisorGuest
from system.soak_report import Report
from system.soak_worker import Worker

WORKERS = 3
FAULTS = ("node", "control", "edge", "cache", "disk")


def own_stack(driver: str) -> dict[str, str]:
    """Options of an installation that shares nothing with others on the machine."""
    base, network = (23200, "10.238.0.0/16") if driver == "fake" else (23100, "10.239.0.0/16")
    names = ("api", "edge", "tls", "node", "ingress", "edge_metrics")
    ports = {f"{name}_port": str(base + offset) for offset, name in enumerate(names)}
    return ports | {"driver": driver, "instance": f"soak{driver[0]}", "slot_network": network}


def soak(
    stack: stacks.Stack, *, driver: str, cycles: int, seed: int, fault_every_s: float
) -> Report:
    """Run that many cycles, then end everything and count what is left."""
    report = Report(seed, cycles)
    guest = FakeGuest(stack) if driver == "fake" else GvisorGuest(stack)
    chance = random.Random(seed)
    with ExitStack() as undo:
        undo.enter_context(small_disk(stack))
        faults = Faults(stack, random.Random(chance.random()), FAULTS, fault_every_s)
        workers = [
            Worker(n, stack, guest, report, faults, random.Random(chance.random()))
            for n in range(WORKERS)
        ]
        faults.start()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        faults.stop()
        report.faults = faults.made
        for worker in workers:
            worker.look_at_all()
        end_everything(workers[0], report)
        count_what_is_left(stack, report)
    return report


def end_everything(worker: Worker, report: Report) -> None:
    """Kill all sandboxes and delete all snapshots; those nobody knows must hold something known."""
    for sandbox_id in worker.api.sandbox_ids():
        if sandbox_id not in report.known:
            report.strays += 1
            worker.look_at_stray(sandbox_id)
        worker.end(sandbox_id)
    for snapshot_id in worker.api.snapshot_ids():
        worker.api.delete_snapshot(snapshot_id)


def count_what_is_left(stack: stacks.Stack, report: Report) -> None:
    options = json.loads((stack.data_dir / "config.json").read_text())
    deadline = time.monotonic() + 60
    while True:
        left = {
            "sandboxes on the node": sorted(ledger.node_sandboxes(stack, options["node_port"])),
            "snapshots": ledger.snapshots_settled(stack, 0),
            "ready snapshots": [
                one
                for one, state in ledger.snapshots_in_database(stack).items()
                if state == "ready"
            ],
            "open bills": {k: v for k, v in ledger.open_bills(stack).items() if v},
        }
        report.leaked = {what: value for what, value in left.items() if value}
        if not report.leaked or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    report.wrong_bills = ledger.wrong_bills(stack)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--driver", choices=["fake", "gvisor"], default="gvisor")
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--fault-every-s", type=float, default=6.0)
    parser.add_argument("--data-dir", type=Path)
    chosen = parser.parse_args()
    sys.stderr.write(f"seed {chosen.seed}\n")
    folder = chosen.data_dir or Path(f"/var/lib/alcove-soak-{chosen.driver}")
    stack = stacks.start(folder, **own_stack(chosen.driver))
    os.environ.update(stack.environment)
    try:
        report = soak(
            stack,
            driver=chosen.driver,
            cycles=chosen.cycles,
            seed=chosen.seed,
            fault_every_s=chosen.fault_every_s,
        )
    finally:
        stacks.alcove_down(folder)
    sys.stdout.write(f"{report.text()}\n")
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
