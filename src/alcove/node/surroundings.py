"""What every life on a node works with."""

from dataclasses import dataclass

from alcove.node.drivers.driver import Driver
from alcove.node.events import Events
from alcove.node.ground import Ground
from alcove.node.places import Places
from alcove.node.records import Records
from alcove.node.saving import Saver
from alcove.node.start import Starter
from alcove.node.volumes.store import Volumes


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every life on this node works with."""

    driver: Driver
    ground: Ground
    places: Places
    records: Records
    events: Events
    starter: Starter
    saver: Saver
    volumes: Volumes
    memory_guard_percent: int
    quiet_after_s: float
    tunnels_per_sandbox: int
