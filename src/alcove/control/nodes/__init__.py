"""Machines: registry, placement, and the client that speaks to them."""
