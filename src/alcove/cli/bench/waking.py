"""The short ways to a sandbox that answers: the warm pool, traffic to a paused one, idle tiers."""

import secrets
import time

from alcove.cli.bench import witness
from alcove.cli.bench.series import Series, expect, milliseconds, verified
from alcove.cli.bench.workbench import LIFE_S, MARK, Workbench
from alcove.wire.hosts import GUEST_PORT
from alcove.wire.states import IdleTier

KEPT_BYTES = 8 * 1000 * 1000
REFILL_LIMIT_S = 15.0
TIER_LIMIT_S = 30.0
FREEZE_AFTER_S = 1
_LOOK_EVERY_S = 0.1
_WARM_TAKEN = 'alcove_node_places_taken_total{source="warm"}'
_WARM_WAITING = "alcove_node_warm_count"


def warm_pool(bench: Workbench, runs: int) -> list[Series]:
    """Creates with rests, in which the pool is filled, and without; hits and misses apart.

    Which was which is read from the node's metrics, so nothing else may create meanwhile.
    """
    hit = Series("tti, warm", "ms", note="create to first command, pool hits only")
    create = Series("create, warm", "ms", note="the same creates without the command")
    miss = Series("tti, pool missed", "ms", note="create to first command, misses only")
    overall = Series("tti, one after the other", "ms", note="no rest between kill and create")
    ratio = Series("warm hits, one after the other", "%")
    for _ in range(runs):
        wait_for_warm(bench)
        tti, created, warm = _first_command(bench)
        (hit if warm else miss).extend(tti)
        if warm:
            create.extend(created)
    hits = 0
    for _ in range(runs):
        tti, _, warm = _first_command(bench)
        hits += warm
        overall.extend(tti)
        (hit if warm else miss).extend(tti)
    ratio.values.append(100 * hits / runs)
    return [hit, create, miss, overall, ratio]


def traffic(bench: Workbench, rounds: int) -> list[Series]:
    """Requests that find their sandbox paused: the edge has it resumed, then forwards."""
    by_port = Series("wake by HTTP", "ms", note="GET of a port of the paused sandbox to its answer")
    by_command = Series("wake by a command", "ms", note="commands.run on the paused sandbox")
    sandbox = bench.sandbox(lifecycle={"on_timeout": "pause", "auto_resume": True})
    keeper = witness.keep(sandbox, KEPT_BYTES)
    for turn in range(2 * rounds):
        expect("pause", sandbox.pause(), wanted=True)
        nonce = secrets.token_hex(8)
        series = by_command if turn % 2 else by_port
        with milliseconds(series):
            if series is by_port:
                path = f"/word/{nonce}"
                answer = bench.ask_port(sandbox.sandbox_id, witness.KEEPER_PORT, path)
                expect("answer", answer, (200, f"{keeper.word} {nonce}\n".encode()))
            else:
                expect("echo", sandbox.commands.run(f"echo {nonce}").stdout, f"{nonce}\n")
        with verified(series):
            witness.expect_memory(sandbox, keeper)
    sandbox.kill()
    return [by_port, by_command]


def tiers(bench: Workbench, rounds: int) -> list[Series]:
    """First answer of a running sandbox by its idle tier, each on a connection of its own."""
    idle = {"timeout": LIFE_S, "action": "pause", "freezeAfter": FREEZE_AFTER_S}
    plain = {"templateID": "base", "timeout": LIFE_S, "metadata": MARK}
    restless = bench.post("/v2/sandboxes", plain)["sandboxID"]
    sleeper = bench.post("/v2/sandboxes", plain | {"idle": idle})["sandboxID"]
    measured = []
    for tier, sandbox_id in (
        (IdleTier.ACTIVE, restless),
        (IdleTier.QUIET, restless),
        (IdleTier.FROZEN, sleeper),
    ):
        series = Series(f"GET /health, {tier}", "ms", note="through the edge, new connection")
        for _ in range(rounds):
            if tier is IdleTier.ACTIVE:
                bench.ask_port(sandbox_id, GUEST_PORT, "/health")
            _wait_for_tier(bench, sandbox_id, tier)
            with milliseconds(series):
                answer = bench.ask_port(sandbox_id, GUEST_PORT, "/health")
                expect("GET /health", answer, (204, b""))
        measured.append(series)
    return measured


def _first_command(bench: Workbench) -> tuple[Series, Series, bool]:
    """One create with its first command; whether the pool had it."""
    tti, create = Series("tti", "ms"), Series("create", "ms")
    nonce = secrets.token_hex(8)
    before = warm_taken(bench)
    sandbox = None
    with milliseconds(tti):
        with milliseconds(create):
            sandbox = bench.sandbox()
        expect("echo", sandbox.commands.run(f"echo {nonce}").stdout, f"{nonce}\n")
    warm = warm_taken(bench) > before
    if sandbox is not None:
        sandbox.kill()
    return tti, create, warm


def warm_taken(bench: Workbench) -> float:
    """How many starts the pool has served."""
    return bench.node_metrics()[_WARM_TAKEN]


def wait_for_warm(bench: Workbench) -> None:
    """Until the pool has one, or too long; it tells nobody, so it is asked."""
    deadline = time.monotonic() + REFILL_LIMIT_S
    while not bench.node_metrics()[_WARM_WAITING] and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY_S)


def _wait_for_tier(bench: Workbench, sandbox_id: str, tier: IdleTier) -> None:
    deadline = time.monotonic() + TIER_LIMIT_S
    while (seen := bench.node_report(sandbox_id)["tier"]) != tier:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{sandbox_id} is {seen} and did not become {tier}")
        time.sleep(_LOOK_EVERY_S)
