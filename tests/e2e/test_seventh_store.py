"""A store of somebody else's package: known by its entry point, driven by plans, and tested."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.e2e.places import Places, records

ROOT = Path(__file__).parents[2]
SEVENTH = ROOT / "tests" / "seventh"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of processes in which the package is installed."""
    site = tmp_path / "site"
    installed = site / "shelf_store-1.0.dist-info"
    installed.mkdir(parents=True)
    (site / "shelf.py").write_text((SEVENTH / "shelf.py").read_text())
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: shelf-store\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(
        "[vector_migration_runner.stores]\nshelf = shelf:ShelfStore\n"
    )
    path = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "NO_COLOR": "1", "COLUMNS": "100"}


def python(folder: Path, environment: dict[str, str], *arguments: str) -> str:
    """What a Python of its own prints, whose last act succeeds."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_takes_a_hundred_lines() -> None:
    lines = (SEVENTH / "shelf.py").read_text().splitlines()
    assert len([each for each in lines if each.strip()]) <= 100


def test_it_is_a_target_and_a_source_of_plans(places: Places, environment: dict[str, str]) -> None:
    """Proved as any other: count, shape, ids, checksum, metadata; rolled back as any other."""
    first, last = places.options("files", "first"), places.options("files", "last")
    shelf = {"store": "shelf", "path": "shelf.db"}
    places.fill(first, records(60))
    for name, source, target in (("there", first, shelf), ("back", shelf, last)):
        places.plan(source, target, name=name, batch_size=25)
        run = ("-m", "runner.cli", "run", f"{name}.yaml")
        assert "60 records" in python(places.folder, environment, *run, "--dry-run")
        assert "PASSED" in python(places.folder, environment, *run)
    assert places.digest(last) == places.digest(first)
    report = ("-m", "runner.cli", "report", "there.yaml", "--format", "json")
    checks = json.loads(python(places.folder, environment, *report))["checks"]
    verdicts = {each["name"]: each["verdict"] for each in checks}
    assert {"count", "shape", "ids", "checksum", "metadata"} <= {
        name for name, verdict in verdicts.items() if verdict == "passed"
    }
    python(places.folder, environment, "-m", "runner.cli", "rollback", "there.yaml", "--yes")
    assert not (places.folder / "shelf.db").exists()


def test_without_its_package_it_is_no_store(places: Places) -> None:
    path = places.plan({"store": "shelf", "path": "x"}, places.options("files", "there"))
    assert yaml.safe_load(path.read_text())["source"]["store"] == "shelf"
    done = subprocess.run(
        [sys.executable, "-m", "runner.cli", "lint", "plan.yaml"],
        cwd=places.folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "'shelf' is not one of" in done.stdout + done.stderr


def test_it_passes_the_suite_as_its_author_runs_it(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "test_shelf.py").write_text((SEVENTH / "conformance_of_shelf.py").read_text())
    # no settings of ours: the folder is nobody's
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    said = python(tmp_path, environment, "-m", "pytest", "-q", "-p", "no:cacheprovider", ".")
    passed = re.search(r"(\d+) passed", said)
    assert passed
    assert int(passed[1]) >= 100
