"""Sandboxes: create, connect, list, kill, timeout, logs, metrics."""
