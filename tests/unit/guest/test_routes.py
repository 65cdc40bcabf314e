"""Every route of the agent is either part of the public contract or refused at the edge."""

from alcove.guest.children import Children
from alcove.guest.environment import Environment
from alcove.guest.main import build_app
from alcove.wire.hosts import INTERNAL_ROUTES

PUBLIC = {"/health", "/metrics", "/envs", "/files", "/files/compose"}
SERVICES = ("/process.Process/", "/filesystem.Filesystem/")


def test_what_is_not_public_is_internal() -> None:
    paths = build_app(Environment(), Children()).paths
    assert paths > PUBLIC
    private = {path for path in paths - PUBLIC if not path.startswith(SERVICES)}
    assert {"/init", "/settle", "/forward"} <= private
    assert {path.split("/")[1] for path in private} <= INTERNAL_ROUTES
