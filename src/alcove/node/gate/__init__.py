"""The gate: a daemon that lets sandboxes with domain rules through by name (RFD 11)."""
