"""Every store to every store: a plan moves a collection, and the proof holds."""

from __future__ import annotations

import numpy as np
import pytest

from runner import load_plan
from runner.checks.compare import ulp_distance
from runner.copy.ids import uuid_for
from runner.results import Verdict
from tests.e2e.places import NEEDS_UUIDS, PAIRS, Places, records

COUNT = 240


def names(source: str, target: str) -> tuple[str, str]:
    word = f"{source}_{target}".replace("-", "_")
    return f"from_{word}", f"to_{word}"


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_collection_arrives_whole(served: Places, source: str, target: str) -> None:
    """Count, ids, checksums, metadata and search; then what the target holds, field by field."""
    one, other = names(source, target)
    kind = "uuid" if source.startswith(NEEDS_UUIDS) else "text"
    sent = records(COUNT, kind=kind)
    from_, to = served.options(source, one), served.options(target, other)
    served.fill(from_, sent, id_kind="uuid" if kind == "uuid" else "string")
    path = served.plan(
        from_, to, batch_size=50, workers=2,
        validation={"queries": {"sample": 20, "k": 5, "min_recall_ratio": 0.95}},
    )  # fmt: skip
    plan = load_plan(path)

    result = plan.run()

    failed = [each for each in result.checks if each.verdict is Verdict.FAILED]
    assert not failed
    assert result.verdict is Verdict.PASSED
    by_name = {check.name: check for check in result.checks}
    assert by_name["count"].summary == f"{COUNT} = {COUNT}"
    assert by_name["shape"].verdict is Verdict.PASSED
    assert by_name["ids"].evidence["missing"] == 0
    assert by_name["checksum"].evidence["verified"] == by_name["checksum"].evidence["batches"]
    assert by_name["metadata"].evidence["compared"] == COUNT
    if target != "files":
        assert by_name["queries"].evidence["recall_target_mean"] >= 0.95

    came = served.read(to)
    assert len(came) == COUNT
    for row, each in enumerate(sent.ids):
        there = each
        if target.startswith(NEEDS_UUIDS) and kind != "uuid":
            there = uuid_for(each)
        vector, document, metadata = came[there]
        assert np.allclose(vector, sent.vector[row], atol=1e-6)
        assert document == sent.documents[row]
        expected = dict(sent.metadata[row])
        if there != each:
            expected["original_id"] = each
        if "pinecone" in (source, target):  # which knows doubles only
            expected["year"] = float(expected["year"])
        if target == "pinecone" != source:
            expected["runner_integers"] = '["year"]'
        assert metadata.keys() == expected.keys()
        for key, value in expected.items():
            assert type(metadata[key]) is type(value)
            if isinstance(value, float):
                assert ulp_distance(metadata[key], value) <= 8
            else:
                assert metadata[key] == value

    # running again changes nothing and says the same
    assert plan.run().run_id == result.run_id
    assert plan.verify().verdict is Verdict.PASSED
    # and it can be taken back
    undone = plan.rollback(confirmed=True)
    assert (undone.action, undone.removed) == ("drop", COUNT)
    with served.opened(to) as store:
        assert store.describe() is None
