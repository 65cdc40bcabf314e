"""Pseudo-terminals."""

import fcntl
import os
import struct
import termios

from alcove.guest.users import User

_MODE = 0o620
_MAX_CELLS = 0xFFFF


def open_terminal(user: User, cols: int, rows: int) -> tuple[int, str]:
    """A new terminal that belongs to `user`: descriptor of its master, path of its other end."""
    master, replica = os.openpty()
    try:
        path = os.ttyname(replica)
        resize(master, cols, rows)
        if os.geteuid() == 0:
            os.fchown(replica, user.uid, -1)
            os.fchmod(replica, _MODE)
    except OSError:
        os.close(master)
        raise
    finally:
        os.close(replica)
    return master, path


def resize(fd: int, cols: int, rows: int) -> None:
    """Set the window size; programs in the foreground get SIGWINCH."""
    size = struct.pack("HHHH", min(rows, _MAX_CELLS), min(cols, _MAX_CELLS), 0, 0)
    fcntl.ioctl(fd, termios.TIOCSWINSZ, size)
