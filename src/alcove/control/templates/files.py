"""The archives that COPY steps take files from: signed addresses for them, and their arrival.

A client computes a hash of the files and sends the archive to an address that needs no credentials
(contract e2b 9.2). The hash is the client's own business (9.4), so archives are kept per team.
"""

import asyncio
import hashlib
import hmac
import re
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

from alcove.control.clock import MICROSECONDS, now_us
from alcove.control.errors import (
    ForbiddenError,
    InvalidRequestError,
    LengthRequiredError,
    TooLargeError,
    TooSlowError,
)
from alcove.storage import Storage
from alcove.wire.builds import FILES_PREFIX, archive_key

_HASH = re.compile(r"[0-9a-f]{64}\Z")
_VALID_S = 3600
_SILENCE_S = 60.0


class BuildFiles:
    def __init__(
        self,
        storage: Storage,
        secret: bytes,
        *,
        max_bytes: int,
        keep_days: int,
        clock: Callable[[], int] = now_us,
    ) -> None:
        self._storage = storage
        self._secret = secret
        self._max_bytes = max_bytes
        self._keep_days = keep_days
        self._clock = clock

    async def present(self, owner: str, files_hash: str) -> bool:
        return await self._storage.size(archive_key(owner, _checked(files_hash))) is not None

    def upload_path(self, owner: str, files_hash: str) -> str:
        """Path and query to which the archive can be sent for an hour."""
        expires = self._clock() // MICROSECONDS + _VALID_S
        signature = self._sign(owner, _checked(files_hash), expires)
        return f"/build-files/{owner}/{files_hash}?expires={expires}&signature={signature}"

    def check(self, owner: str, files_hash: str, expires: int, signature: str) -> None:
        """Raise ForbiddenError unless upload_path() gave this address, and lately."""
        expected = self._sign(owner, _checked(files_hash), expires)
        if not hmac.compare_digest(expected.encode(), signature.encode()):
            raise ForbiddenError("The signature of this upload address is not valid")
        if expires <= self._clock() // MICROSECONDS:
            raise ForbiddenError("This upload address has expired; ask for another one")

    async def receive(
        self, owner: str, files_hash: str, length: int | None, body: AsyncIterator[bytes]
    ) -> None:
        """Keep an archive, in place of the one that was there."""
        if length is None:
            raise LengthRequiredError("Content-Length is needed: the archive is not sent in chunks")
        if length > self._max_bytes:
            raise TooLargeError(
                f"The archive has {length} bytes and may have {self._max_bytes}; leave files out"
                " with .dockerignore, or fetch them in a RUN step"
            )
        await self._storage.put(archive_key(owner, _checked(files_hash)), _exactly(length, body))

    async def forget_old(self) -> int:
        """Remove the archives that were sent too long ago; how many that were."""
        now = datetime.fromtimestamp(self._clock() / MICROSECONDS, UTC)
        old = await self._storage.older_than(FILES_PREFIX, now - timedelta(days=self._keep_days))
        for key in old:
            await self._storage.remove(key)
        return len(old)

    def _sign(self, owner: str, files_hash: str, expires: int) -> str:
        text = f"build-files:{owner}:{files_hash}:{expires}"
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()


def _checked(files_hash: str) -> str:
    if not _HASH.match(files_hash):
        raise InvalidRequestError("The files hash must be 64 lower-case hexadecimal digits")
    return files_hash


async def _exactly(length: int, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The body, if it has its length and no long silences."""
    left = length
    parts = aiter(body)
    while True:
        try:
            async with asyncio.timeout(_SILENCE_S):
                chunk = await anext(parts)
        except StopAsyncIteration:
            break
        except TimeoutError as error:
            raise TooSlowError(f"Nothing of the archive came for {_SILENCE_S:g} s") from error
        left -= len(chunk)
        if left < 0:
            break
        if chunk:
            yield chunk
    if left:
        raise InvalidRequestError("The archive does not have the length that was announced")
