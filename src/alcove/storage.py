"""The object store: a directory of this machine, or a bucket that several machines share.

Keys look like relative paths. What is put appears whole or not at all.
"""

from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import obstore
from obstore.store import LocalStore, from_url

_PART_BYTES = 8 << 20


class StorageError(Exception):
    """The object store does not do what it was asked; the message is for the operator."""


class Storage:
    """Puts, gets and removes objects. Everything raises StorageError."""

    def __init__(self, url: str, data_dir: Path) -> None:
        """`url`: s3://bucket/prefix, with credentials from the environment (AWS_ACCESS_KEY_ID,
        AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL, and AWS_ALLOW_HTTP=true for one
        without TLS); empty: <data_dir>/storage.
        """
        if url:
            self._store = from_url(url)
            return
        directory = data_dir / "storage"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._store = LocalStore(directory)

    async def size(self, key: str) -> int | None:
        """Bytes of an object; None if there is none."""
        try:
            return int((await obstore.head_async(self._store, key))["size"])
        except FileNotFoundError:
            return None
        except Exception as error:
            raise StorageError(f"{key}: {_reason(error)}") from error

    async def put(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        """Store what `chunks` yields; an exception of theirs is raised as it is."""
        failed: list[BaseException] = []

        async def guarded() -> AsyncIterator[bytes]:
            try:
                async for chunk in chunks:
                    yield chunk
            except BaseException as error:
                failed.append(error)
                raise

        try:
            await obstore.put_async(self._store, key, guarded(), chunk_size=_PART_BYTES)
        except Exception as error:
            if failed:
                raise failed[0] from error
            raise StorageError(f"{key}: {_reason(error)}") from error

    async def get(self, key: str) -> AsyncIterator[bytes]:
        """The bytes of an object, in parts."""
        try:
            result = await obstore.get_async(self._store, key)
            async for chunk in result.stream(min_chunk_size=1 << 20):
                yield bytes(chunk)
        except FileNotFoundError as error:
            raise StorageError(f"{key} is not in the object store") from error
        except Exception as error:
            raise StorageError(f"{key}: {_reason(error)}") from error

    async def remove(self, key: str) -> None:
        """Remove an object; no harm if there is none."""
        try:
            await obstore.delete_async(self._store, key)
        except FileNotFoundError:
            return
        except Exception as error:
            raise StorageError(f"{key}: {_reason(error)}") from error

    async def older_than(self, prefix: str, moment: datetime) -> list[str]:
        """Keys below a prefix that were written last before a moment."""
        found: list[str] = []
        try:
            async for batch in obstore.list(self._store, prefix):
                found += [entry["path"] for entry in batch if entry["last_modified"] < moment]
        except Exception as error:
            raise StorageError(f"{prefix}: {_reason(error)}") from error
        return found


def _reason(error: Exception) -> str:
    """What obstore says, without the record of its retries that follows."""
    kind = type(error).__name__
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{kind}: {first[:300]}"
