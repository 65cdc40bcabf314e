"""Secrets derived or made: sandbox tokens, API keys, file signatures.

Sandbox tokens are HMACs of the sandbox id, so they stay the same over pause, resume and restart and
need not be stored (contract e2b 2.2).
"""

import base64
import hashlib
import hmac
import re
import secrets

from alcove.wire.ids import SandboxId, VolumeId

API_KEY_PREFIX = "e2b_"
_API_KEY = re.compile(r"e2b_[0-9a-f]{40}\Z")


def access_token(seed: bytes, sandbox_id: SandboxId) -> str:
    """The token a client must send to the guest of this sandbox."""
    return hmac.new(seed, sandbox_id.encode(), hashlib.sha256).hexdigest()


def traffic_token(seed: bytes, sandbox_id: SandboxId) -> str:
    """The token a client must send to the ports of this sandbox when its traffic is private."""
    return hmac.new(seed, b"sandbox-traffic-" + sandbox_id.encode(), hashlib.sha256).hexdigest()


def volume_token(seed: bytes, volume_id: VolumeId) -> str:
    """The token a client must send to the content API of this volume."""
    return hmac.new(seed, b"volume-" + volume_id.encode(), hashlib.sha256).hexdigest()


def new_api_key() -> str:
    """A key every E2B client accepts: old ones check the form before the first request."""
    return API_KEY_PREFIX + secrets.token_hex(20)


def is_api_key(text: str) -> bool:
    return _API_KEY.match(text) is not None


def hash_api_key(key: str) -> str:
    """What is stored of a key. A key has 160 random bits, so a plain hash cannot be searched."""
    return hashlib.sha256(key.encode()).hexdigest()


def file_signature(
    path: str, operation: str, username: str, token: str, expiration: int | None = None
) -> str:
    """Signature of one file operation (contract e2b 3.3).

    `path` and `username` exactly as in the query (username empty if absent), `operation` is
    "read" or "write", `expiration` in seconds since the epoch.
    """
    text = f"{path}:{operation}:{username}:{token}"
    if expiration is not None:
        text += f":{expiration}"
    digest = hashlib.sha256(text.encode()).digest()
    return "v1_" + base64.b64encode(digest).decode().rstrip("=")


def same(left: str, right: str) -> bool:
    """Compare two secrets in constant time."""
    return hmac.compare_digest(left.encode(), right.encode())
