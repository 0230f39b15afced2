"""Where schemas and transforms are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner import bundled


def test_both_folders_are_there() -> None:
    assert (bundled.schemas() / "plan.v1.schema.json").is_file()
    assert bundled.transforms().is_dir()


def test_the_wheels_copy_comes_first(tmp_path: Path) -> None:
    package = tmp_path / "runner"
    (package / "_bundled" / "schemas").mkdir(parents=True)
    (tmp_path / "schemas").mkdir()
    (tmp_path / "pyproject.toml").touch()
    assert bundled.folder("schemas", package) == package / "_bundled" / "schemas"


def test_a_checkouts_copy_counts_only_beside_its_pyproject(tmp_path: Path) -> None:
    package = tmp_path / "runner"
    package.mkdir()
    (tmp_path / "schemas").mkdir()
    with pytest.raises(FileNotFoundError, match="install the package again"):
        bundled.folder("schemas", package)
    (tmp_path / "pyproject.toml").touch()
    assert bundled.folder("schemas", package) == tmp_path / "schemas"
