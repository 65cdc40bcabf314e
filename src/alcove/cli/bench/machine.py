"""What sandboxes cost this machine: processor time of a create, memory and processor time at rest.

And what edge and ingress add to a request.
"""

import http.client
import json
import os
import time
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from alcove.cli.bench.series import Series, expect, milliseconds
from alcove.cli.bench.workbench import MARK
from alcove.cli.installation import Installation
from alcove.node import uplink
from alcove.node.cgroups import Cgroup
from alcove.node.ground_kernel import KernelGround
from alcove.node.network import Network
from alcove.wire.hosts import GUEST_PORT

SETTLE_S = 8.0
IDLE_S = 20.0
TIMER_LOOP = """
import time
for _ in range(20):
    wanted = time.monotonic() + 0.8
    time.sleep(0.8)
    print((time.monotonic() - wanted) * 1000, flush=True)
"""


def create_cost(runs: int) -> list[Series]:
    """Processor seconds of the machine per create and kill, client and preparation included."""
    from e2b import Sandbox

    series = Series("cpu per create+kill", "cpu s", note=f"mean over {runs}, refill included")
    before = _busy_s()
    for _ in range(runs):
        expect("kill", Sandbox.create(metadata=MARK).kill(), wanted=True)
    time.sleep(2)  # the places handed out are made again in the background
    series.values.append((_busy_s() - before) / runs)
    return [series]


def at_rest(installation: Installation, count: int) -> list[Series]:
    """Memory and processor time of idle sandboxes, and how late timers inside them are."""
    from e2b import Sandbox

    memory = Series("memory per idle sandbox", "MiB", note="of its control group, page cache too")
    cpu = Series("cpu of an idle sandbox", "% of a core", note=f"over {IDLE_S:g} s")
    late = Series(
        "lateness of a timer inside", "ms", note="sleep(0.8) in an otherwise idle sandbox"
    )
    sandboxes = [Sandbox.create(metadata=MARK) for _ in range(count)]
    try:
        time.sleep(SETTLE_S)
        groups = [group(installation, s.sandbox_id) for s in sandboxes]
        memory.values += [one.usage().memory_used / 2**20 for one in groups]
        used = [one.usage().cpu_seconds for one in groups]
        time.sleep(IDLE_S)
        cpu.values += [
            (one.usage().cpu_seconds - start) / IDLE_S * 100
            for one, start in zip(groups, used, strict=True)
        ]
        timer = sandboxes[0]
        timer.files.write("/home/user/timer.py", TIMER_LOOP)
        timer.commands.run("python3 timer.py > late.txt", background=True, timeout=0).disconnect()
        time.sleep(20 * 0.8 + 3)
        late.values += [float(line) for line in timer.files.read("late.txt").split()]
        expect("timer lines", len(late.values), 20)
    finally:
        for sandbox in sandboxes:
            sandbox.kill()
    return [memory, cpu, late]


def hops(installation: Installation, runs: int) -> list[Series]:
    """GET /health of one sandbox through edge and ingress, and straight to its address."""
    from e2b import Sandbox

    through = Series("GET /health through edge", "ms", note="keep-alive, edge and ingress")
    straight = Series("floor: GET /health direct", "ms", note="keep-alive, host to sandbox")
    with Sandbox.create(metadata=MARK) as sandbox:
        place = _place(installation, _ground(installation), sandbox.sandbox_id)
        headers = {
            "E2b-Sandbox-Id": sandbox.sandbox_id,
            "E2b-Sandbox-Port": str(GUEST_PORT),
        }
        edge = urlsplit(installation.sandbox_url)
        assert edge.hostname is not None
        _ask(through, http.client.HTTPConnection(edge.hostname, edge.port), headers, runs)
        _ask(straight, http.client.HTTPConnection(place.address, GUEST_PORT), {}, runs)
    return [through, straight]


def _ask(
    series: Series, connection: http.client.HTTPConnection, headers: dict[str, str], runs: int
) -> None:
    def once() -> None:
        connection.request("GET", "/health", headers=headers)
        answer = connection.getresponse()
        answer.read()
        expect("GET /health", answer.status, 204)

    once()  # connect and fill the edge's catalog
    for _ in range(runs):
        with milliseconds(series):
            once()
    connection.close()


def group(installation: Installation, sandbox_id: str) -> Cgroup:
    """The control group of a running sandbox."""
    return Cgroup(_place(installation, _ground(installation), sandbox_id).cgroup)


def memory_available_mib() -> float:
    """What the kernel says could still be used."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("MemAvailable:")]
    return int(line.split()[1]) / 1024


def _ground(installation: Installation) -> KernelGround:
    options = installation.options
    network = Network(options.instance, IPv4Network(options.slot_network), mtu=uplink.uplink().mtu)
    return KernelGround(network, installation.data_dir / "slots")


def _place(installation: Installation, ground: KernelGround, sandbox_id: str) -> Any:
    record = json.loads(
        (installation.data_dir / "sandboxes" / sandbox_id / "record.json").read_text()
    )
    return ground.place(record["slot"])


def _busy_s() -> float:
    """Processor seconds of the machine since boot, all but idle and waiting for disks."""
    fields = [int(v) for v in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")
