"""The cli room: speaks."""
