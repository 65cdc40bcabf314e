"""Saved states of sandboxes: what keeps them, and what removes them."""
