"""Words that all processes share. No I/O, standard library only."""
