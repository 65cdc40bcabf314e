"""Append-only ledger of what ran."""
