"""Makes what is on this machine match what is known: one step, without input, at any time."""

from typing import Protocol

import structlog

from alcove.node.drivers.driver import Image
from alcove.node.events import Events
from alcove.node.ground import Size
from alcove.node.places import Places
from alcove.node.snapshots import Snapshots
from alcove.node.supervisor import Supervisor
from alcove.wire.ids import BuildId
from alcove.wire.node import ImageReport
from alcove.wire.states import BuildState

_log = structlog.get_logger()

PERIOD_S = 30.0


async def step(supervisor: Supervisor, places: Places, snapshots: Snapshots) -> None:
    """Clear slots that nobody owns, remains of snapshots, sandboxes that stopped long ago.

    Checksums that a crash has prevented are written.

    What a live sandbox needs is not looked after here: its own task is told by the kernel.
    """
    strays = await places.sweep()
    if strays:
        _log.warning("places.strays_found", count=strays)
    remains = await snapshots.sweep()
    if remains:
        _log.info("snapshots.remains_removed", count=remains)
    supervisor.forget_old()
    await snapshots.seal_owed()


class ReadyImages(Protocol):
    def get(self, build_id: BuildId) -> Image | None: ...

    def reports(self) -> list[ImageReport]: ...


async def prepare_ready_images(events: Events, images: ReadyImages, places: Places) -> None:
    """Have places prepared for every image as soon as it is ready."""
    while not events.closed:
        # Every stream begins with a hello: then, and after each build, all images are looked at.
        async for event in events.follow(0):
            if event is not None and event.kind in {"hello", "image.ready"}:
                _want_ready(images, places)


def _want_ready(images: ReadyImages, places: Places) -> None:
    """Keep places for the newest build of every template; older ones are asked for by name."""
    ready = [report for report in images.reports() if report.state is BuildState.READY]
    ready.sort(key=lambda report: report.finished_at or 0.0)
    newest = {report.template_id: report for report in ready if not report.stale}
    for report in ready:
        image = images.get(report.build_id)
        if report is newest.get(report.template_id) and image is not None:
            places.want(image, Size(report.vcpu_count, report.memory_mib, report.disk_mib))
        else:
            places.forget(report.build_id)
