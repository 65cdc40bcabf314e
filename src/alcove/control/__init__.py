"""The control room: decides; the only room that opens the database."""
