"""Errors of the content of volumes, in the words of the contract (e2b 2.11)."""

import errno
from typing import Any


class ContentError(Exception):
    """An answer of the content API: an HTTP status, a code in words, and a message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    def body(self) -> dict[str, Any]:
        return {"code": self.code, "message": str(self)}


def not_found(path: str) -> ContentError:
    return ContentError(404, "PATH_NOT_FOUND", f"path '{path}' not found")


def exists(path: str) -> ContentError:
    return ContentError(
        409, "PATH_ALREADY_EXISTS", f"path '{path}' already exists; pass force to write to it"
    )


def invalid(message: str) -> ContentError:
    return ContentError(400, "INVALID_REQUEST", message)


def not_supported(message: str) -> ContentError:
    return ContentError(400, "NOT_SUPPORTED", message)


def full(path: str) -> ContentError:
    return ContentError(
        507,
        "QUOTA_EXCEEDED",
        f"there is no room for '{path}': the volume is full, of bytes or of files; "
        "delete something or have the volume enlarged",
    )


def explain(error: OSError, path: str) -> ContentError:
    """What an error of the file system means to who asked for `path`."""
    match error.errno:
        case errno.ENOENT:
            return not_found(path)
        case errno.EEXIST:
            return exists(path)
        case errno.ENOTDIR:
            return invalid(f"a part of '{path}' is not a directory")
        case errno.EISDIR:
            return invalid(f"'{path}' is a directory")
        case errno.ELOOP:
            return invalid(f"'{path}' leads through a link that cannot be followed")
        case errno.ENAMETOOLONG:
            return invalid("the path, or a name in it, is too long")
        case errno.ENOSPC | errno.EDQUOT:
            return full(path)
        case errno.EXDEV | errno.ENXIO | errno.EOPNOTSUPP | errno.EACCES | errno.EPERM:
            return not_supported(f"'{path}' is not a file that can be used this way")
        case errno.EAGAIN | errno.ENOTEMPTY | errno.EBUSY:
            return ContentError(
                409, "PATH_CHANGING", f"'{path}' is being changed by somebody else; try again"
            )
        case _:
            return ContentError(500, "INTERNAL", f"'{path}': the volume cannot be used just now")
