"""openat2(2), which Python does not have: open a path that cannot leave a directory.

RESOLVE_IN_ROOT takes the directory for `/`: absolute links and `..` stay below it, whoever renames
what meanwhile; the kernel answers EAGAIN rather than guess.
"""

import ctypes
import errno
import os

_NUMBER = 437
"""The same on every architecture."""
_RESOLVE_NO_XDEV, _RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x01, 0x02, 0x10
_ATTEMPTS = 100
_AT_EMPTY_PATH = 0x1000


class _How(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


_libc = ctypes.CDLL(None, use_errno=True)


def open_in(root: int, path: str, flags: int, mode: int = 0) -> int:
    """Open `path` as if the directory `root` were `/`; a descriptor the caller owns.

    Links are followed (but the last one only without O_NOFOLLOW), other file systems are not
    entered. Raises OSError.
    """
    how = _How(flags | os.O_CLOEXEC, mode, _RESOLVE_NO_XDEV | _RESOLVE_NO_MAGICLINKS)
    how.resolve |= _RESOLVE_IN_ROOT
    name = os.fsencode(path)
    for _ in range(_ATTEMPTS):
        fd: int = _libc.syscall(
            _NUMBER, root, ctypes.c_char_p(name), ctypes.byref(how), ctypes.c_size_t(24)
        )
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        if code not in {errno.EAGAIN, errno.EINTR}:
            raise OSError(code, os.strerror(code), path)
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)


def name_file(fd: int, directory: int, name: str) -> None:
    """Give a file that was opened with O_TMPFILE a name. Raises OSError, FileExistsError too."""
    if _libc.linkat(fd, b"", directory, os.fsencode(name), _AT_EMPTY_PATH) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)
