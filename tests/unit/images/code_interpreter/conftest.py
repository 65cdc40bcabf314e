"""One kernel for all tests of the kernel: each leaves it as it found it, but for its names."""

from collections.abc import Iterator

import pytest
from kernel_room import Room, kernel_room


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    # The path of a unix socket has at most 107 bytes.
    with kernel_room(tmp_path_factory.mktemp("k")) as opened:
        yield opened
