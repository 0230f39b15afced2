"""Steps as a journal keeps them."""

from __future__ import annotations

from typing import Any

from runner.plan.model import Validation
from runner.steps.model import Copy, steps_from_json, steps_to_json


def read_again(rows: list[dict[str, Any]]) -> Copy:
    (step,) = steps_from_json(
        rows, batch_records=10, writers=1, verify_every=1, validation=Validation(), limited=False
    )
    assert isinstance(step, Copy)
    return step


def test_a_copy_counts_its_batches_namespace_by_namespace() -> None:
    rows = steps_to_json([Copy(23, [1, 0, 22], 1000, 1, 1, 1)])
    assert read_again(rows).batches == 4


def test_a_journal_that_knows_no_namespaces_is_read() -> None:
    rows = steps_to_json([Copy(23, [1, 22], 1000, 1, 1, 1)])
    del rows[0]["in_namespaces"]
    assert read_again(rows).batches == 3
