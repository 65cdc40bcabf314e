"""Alcove: self-hosted sandboxes for AI agents."""

from alcove._version import __version__

__all__ = ["__version__"]
