"""Collections and a command line for whole migrations."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.places import Places, servers
from tests.e2e.warm import WarmCli


@pytest.fixture(scope="session")
def server_environment() -> Iterator[dict[str, str]]:
    with servers() as environment:
        yield environment


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """Embedded stores only: nothing is started."""
    folder = tmp_path / "work"
    folder.mkdir()
    return Places(folder)


@pytest.fixture
def served(
    places: Places, server_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Places:
    """Servers as well."""
    for name, value in server_environment.items():
        monkeypatch.setenv(name, value)
    places.environment = server_environment
    return places


Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def warm_cli() -> Iterator[WarmCli]:
    with WarmCli() as process:
        yield process


@pytest.fixture
def cli(places: Places, warm_cli: WarmCli) -> Cli:
    """Run the command line in a process of its own, in the test's folder."""

    def call(*arguments: str, **more: int) -> subprocess.CompletedProcess[str]:
        return warm_cli.run(arguments, places.folder, places.process_environment(), **more)

    return call
