"""Collections and a command line for whole migrations."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.places import Places, servers


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


@pytest.fixture
def cli(places: Places) -> Cli:
    """Run the command line in a process of its own, in the test's folder."""

    def call(*arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "runner.cli", *arguments],
            cwd=places.folder,
            env=places.process_environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            **more,  # type: ignore[call-overload]
        )

    return call
