"""What `status` works out from a journal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.copy.journal import Journal
from runner.steps.outcome import rate_of


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal.create(tmp_path / "journal.sqlite")
    for second in range(0, 101, 5):
        # 10 a second for a minute, then 100 a second
        records = 10 * second if second <= 60 else 600 + 100 * (second - 60)
        made.sample_throughput(float(second), records, records * 10)
    yield made
    made.close()


def test_while_a_run_goes_on_its_rate_is_that_of_late(journal: Journal) -> None:
    assert rate_of(journal, 4600, running=True) == pytest.approx(100.0)


def test_afterwards_it_is_that_of_the_whole_copy(journal: Journal) -> None:
    assert rate_of(journal, 4600, running=False) == pytest.approx(46.0)


def test_nothing_copied_has_no_rate(tmp_path: Path) -> None:
    empty = Journal.create(tmp_path / "empty.sqlite")
    assert rate_of(empty, 0, running=True) is None
    empty.close()
