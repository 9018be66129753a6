"""Servers of their own, for what would disturb other tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from aggregator import embedded

NewServer = Callable[..., embedded.Server]


@pytest.fixture
def new_server() -> Iterator[NewServer]:
    """A function that starts a server with some settings, removed at the test's end."""
    bin_dir = os.environ.get("AGGREGATOR_TEST_BIN")
    with ExitStack() as stack:

        def start(**settings: str) -> embedded.Server:
            given = {"fsync": "off", "shared_buffers": "'32MB'", **settings}
            return stack.enter_context(embedded.temporary_server(Path(bin_dir) if bin_dir else None, given))

        yield start
