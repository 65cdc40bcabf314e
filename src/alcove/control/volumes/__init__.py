"""Volumes of teams: directories that sandboxes share and that outlive them."""
