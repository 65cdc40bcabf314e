"""The edge room: forwards; knows nothing of what it carries."""
