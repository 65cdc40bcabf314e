"""Alembic's entry: runs on the connection db.py hands over, inside its transaction."""

from alembic import context

from alcove.control.db import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite cannot alter most things in place.
    render_as_batch=True,
    compare_type=True,
)
context.run_migrations()
