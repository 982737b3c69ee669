"""One Janus for the session, or one of a test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from running_janus import Stack, start, stop


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One running Janus that tests share; a test that breaks something starts its own."""
    running = start(tmp_path_factory.mktemp("janus"))
    try:
        running.wait_ready()
        yield running
    finally:
        stop(running)


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[Stack]:
    """A Janus of the test's own, to be broken."""
    running = start(tmp_path)
    try:
        running.wait_ready()
        yield running
    finally:
        if running.supervisor.poll() is None:
            stop(running)
