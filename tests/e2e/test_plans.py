"""Every plan that ships runs, as it stands, and passes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from runner import load_plan
from runner.model import BatchSize
from runner.results import Verdict
from runner.stores.base import Access
from tests.e2e.places import Places

PLANS = Path(__file__).parents[2] / "plans"


def quickstart(served: Places) -> None:
    """The sample in a Chroma folder, where `make demo` puts it."""
    sample = {"store": "files", "path": "plans/sample/documents.parquet"}
    chroma = {"store": "chroma", "path": ".demo/chroma", "collection": "docstrings"}
    (served.folder / ".demo").mkdir()
    with served.opened(sample) as source, served.opened(chroma, Access.WRITE) as target:
        wanted = source.describe()
        assert wanted is not None
        target.create(target.propose(wanted, 0, 0).spec)
        for partition in source.partitions(1):
            for page in source.scan(partition, None, BatchSize(500)):
                target.write(page.batch, fresh=True)


PREPARED: dict[str, Callable[[Places], None]] = {"quickstart": quickstart}


def test_every_plan_that_ships_is_tried_here() -> None:
    assert {each.stem for each in PLANS.glob("*.yaml")} == PREPARED.keys()


@pytest.mark.parametrize("name", PREPARED)
def test_a_plan_that_ships_runs_and_passes(
    served: Places, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(PLANS, served.folder / "plans", ignore=shutil.ignore_patterns(".runner"))
    PREPARED[name](served)
    monkeypatch.setenv("PG_DSN", served.environment["TEST_DSN"])
    result = load_plan(served.folder / "plans" / f"{name}.yaml").run()
    assert [each for each in result.checks if each.verdict is Verdict.FAILED] == []
    assert result.records == 1500
