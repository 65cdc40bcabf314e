"""Templates and their builds."""
