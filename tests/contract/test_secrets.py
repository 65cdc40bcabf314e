"""Secrets with the official Python SDK: stored, listed, changed, destroyed; never shown."""

import pytest
from e2b import Secret
from e2b.exceptions import SecretException, SecretNotFoundException

from stack import Stack


def test_a_secret(stack: Stack) -> None:
    made = Secret.create("Contract-Token", "hush", metadata={"for": "tests"})
    try:
        assert (made.name, made.version, made.metadata) == (
            "contract-token",
            1,
            {"for": "tests"},
        )
        assert "hush" not in repr(made)
        assert Secret.get_info(made.secret_id) == Secret.get_info("contract-token") == made
        assert Secret.update("contract-token", "hush again").version == 2
        listed = Secret.list(limit=1)
        names = []
        while listed.has_next:
            names += [secret.name for secret in listed.next_items()]
        assert "contract-token" in names
        with pytest.raises(SecretException, match="already exists"):
            Secret.create("contract-token", "other")
    finally:
        assert Secret.destroy(made.secret_id) is True
    assert Secret.destroy(made.secret_id) is False
    assert not Secret.exists("contract-token")
    with pytest.raises(SecretNotFoundException):
        Secret.update("contract-token", "v")
