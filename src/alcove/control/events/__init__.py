"""What happened to whom, in order."""
