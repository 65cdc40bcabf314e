"""The life of a volume.

    MAKING ──made──▶ READY ──delete──▶ DELETING ──gone──▶ (no row)
       └──────────── failed ──────────────▲

The row is written before a node is asked for anything, and is there until the node has nothing
left: so no crash leaves a volume that nobody knows.
"""

from enum import StrEnum


class VolumeState(StrEnum):
    MAKING = "making"
    READY = "ready"
    DELETING = "deleting"
