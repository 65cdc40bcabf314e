"""How failures of the file system are told: as HTTP answers and as Connect errors."""

import errno

from alcove.guest.http import HttpError
from alcove.wire.connect import ConnectError
from alcove.wire.errors import Code

_STATUSES = {
    errno.ENOENT: 404,
    errno.ENOTDIR: 400,
    errno.EISDIR: 400,
    errno.ELOOP: 400,
    errno.ENAMETOOLONG: 400,
    errno.EINVAL: 400,
    errno.ENXIO: 400,
    errno.EACCES: 403,
    errno.EPERM: 403,
    errno.EROFS: 403,
    errno.EBUSY: 409,
    errno.ETXTBSY: 409,
    errno.ENOSPC: 507,
    errno.EDQUOT: 507,
}

_CODES = {
    errno.ENOENT: Code.NOT_FOUND,
    errno.ELOOP: Code.FAILED_PRECONDITION,
    errno.ENOTEMPTY: Code.FAILED_PRECONDITION,
    errno.EBUSY: Code.FAILED_PRECONDITION,
    errno.ETXTBSY: Code.FAILED_PRECONDITION,
    errno.EROFS: Code.FAILED_PRECONDITION,
    errno.EEXIST: Code.ALREADY_EXISTS,
    errno.EISDIR: Code.INVALID_ARGUMENT,
    errno.ENOTDIR: Code.INVALID_ARGUMENT,
    errno.EINVAL: Code.INVALID_ARGUMENT,
    errno.ENAMETOOLONG: Code.INVALID_ARGUMENT,
    errno.EACCES: Code.PERMISSION_DENIED,
    errno.EPERM: Code.PERMISSION_DENIED,
    errno.ENOSPC: Code.RESOURCE_EXHAUSTED,
    errno.EDQUOT: Code.RESOURCE_EXHAUSTED,
    errno.EMFILE: Code.RESOURCE_EXHAUSTED,
}


def as_http(error: OSError, path: str, doing: str) -> HttpError:
    """`doing` is the failed step, as in "opening"."""
    status = _STATUSES.get(error.errno or 0, 500)
    if status == 404:
        return HttpError(404, f"path '{path}' does not exist")
    if status == 507:
        return HttpError(507, "not enough disk space available")
    return HttpError(status, f"error {doing} file '{path}': {_reason(error)}")


def as_connect(error: OSError, path: str) -> ConnectError:
    code = _CODES.get(error.errno or 0, Code.INTERNAL)
    if code is Code.NOT_FOUND:
        return file_not_found(path)
    return ConnectError(code, f"{_reason(error)}: {path}")


def file_not_found(path: str) -> ConnectError:
    return ConnectError(Code.NOT_FOUND, f"file not found: {path}")


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
