"""Secrets of teams: write-only values for what leaves sandboxes, sealed in the database."""
