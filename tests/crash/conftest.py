"""The same collections as in the end-to-end tests, and a process that kills runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.killer import Killer
from tests.e2e.conftest import places, served, server_environment

__all__ = ["killer", "places", "served", "server_environment"]


@pytest.fixture(scope="session")
def killer() -> Iterator[Killer]:
    with Killer() as process:
        yield process
