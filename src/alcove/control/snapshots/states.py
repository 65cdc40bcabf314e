"""The life of a snapshot as control keeps it.

CREATING ──saved──▶ READY ──nobody refers to it──▶ DELETING ──gone──▶ (no row)
    └──────── failed · interrupted ──────────────────▲
"""

from enum import StrEnum


class SnapshotKind(StrEnum):
    """Why a snapshot was taken, and so who keeps it."""

    PAUSE = "pause"
    """Kept while the sandbox is paused."""
    FORK = "fork"
    """Kept until the children run."""
    CHECKPOINT = "checkpoint"
    """Kept until it is deleted: its owner sees it as a template build."""


class SnapshotState(StrEnum):
    CREATING = "creating"
    READY = "ready"
    DELETING = "deleting"
