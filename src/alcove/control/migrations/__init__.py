"""The database's schema over time: one linear history, one file per change."""
