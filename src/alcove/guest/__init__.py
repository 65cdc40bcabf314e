"""The guest room: serves, inside the sandbox, as PID 1. Standard library and h11 only."""
