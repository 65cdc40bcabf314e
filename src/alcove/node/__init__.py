"""The node room: does; the only room that touches the kernel of its machine. No database."""
