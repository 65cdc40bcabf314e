"""Volumes: directories that outlive sandboxes, on file systems of fixed size."""
