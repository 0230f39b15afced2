"""Records that somebody else writes to the target while a run is under way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from runner import Plan, Stop, load_plan
from runner.copy.journal import Journal
from runner.errors import HazardError, StoppedError
from runner.model import Batch, Metadata
from runner.results import Verdict
from runner.stores.base import Access
from tests.e2e.places import Places, records

COUNT = 300
BATCH = 20
SENT = records(COUNT, kind="uuid")
LATE = COUNT - 5
"""The row whose id somebody else uses: far behind what is in flight at the first batches."""


def strangers() -> Batch:
    return SENT.take([LATE]).with_(
        documents=["somebody else's"], metadata=Metadata.of([{"theirs": True}])
    )


def write(places: Places, to: dict[str, Any], batch: Batch) -> None:
    with places.opened(to, Access.WRITE) as target:
        target.write(batch)


def begun(places: Places, to: dict[str, Any], mode: str = "refuse", **more: Any) -> Plan:
    """A plan that copies `SENT`, in batches one after the other."""
    source = places.options("files", "source")
    places.fill(source, SENT, id_kind="uuid")
    if mode == "append":
        places.fill(to, records(9, seed=8).with_(ids=_others(9)), id_kind="uuid")
    return load_plan(
        places.plan(
            source, {**to, "if_exists": mode}, batch_size=BATCH, workers=1,
            validation={"queries": "none"}, **more,
        )
    )  # fmt: skip


def _others(count: int) -> list[int | str]:
    return [f"00000000-0000-4000-8000-{row:012d}" for row in range(count)]


@pytest.fixture
def at_third_batch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Have something done once, when three batches are journalled."""

    def arrange(act: Callable[[], None]) -> None:
        commit, done = Journal.commit, []

        def counted(self: Journal, row: Any) -> None:
            commit(self, row)
            done.append(row)
            if len(done) == 3:
                act()

        monkeypatch.setattr(Journal, "commit", counted)

    return arrange


def interrupt(plan: Plan, arrange: Callable[[Callable[[], None]], None]) -> None:
    stop = Stop()
    arrange(stop.request)
    with pytest.raises(StoppedError):
        plan.run(stop=stop)


def theirs(places: Places, to: dict[str, Any]) -> dict[str, Any]:
    found = places.read(to)[SENT.ids[LATE]]
    return {"document": found[1], **found[2]}


@pytest.mark.parametrize("mode", ["append", "refuse"])
@pytest.mark.parametrize("store", ["chroma", "pgvector", "qdrant-edge", "qdrant-double"])
def test_what_came_while_a_run_was_interrupted_is_not_overwritten(
    served: Places, at_third_batch: Any, store: str, mode: str
) -> None:
    """Not by the resume, which names the id, nor taken away by the rollback."""
    to = served.options(store, f"while_{mode}_{store.replace('-', '_')}")
    plan = begun(served, to, mode)
    interrupt(plan, at_third_batch)
    write(served, to, strangers())

    with pytest.raises(HazardError, match=str(SENT.ids[LATE])) as caught:
        plan.resume()
    assert "overwrite-records" in caught.value.what
    assert theirs(served, to) == {"document": "somebody else's", "theirs": True}

    undone = plan.rollback(confirmed=True)
    assert undone.action == "delete"
    left = {*_others(9)} if mode == "append" else set()
    assert served.read(to).keys() == left | {SENT.ids[LATE]}
    assert theirs(served, to) == {"document": "somebody else's", "theirs": True}


@pytest.mark.parametrize("mode", ["append", "refuse"])
@pytest.mark.parametrize("store", ["chroma", "pgvector"])
def test_it_is_overwritten_by_leave_and_the_rollback_tells_it_apart(
    served: Places, at_third_batch: Any, store: str, mode: str
) -> None:
    to = served.options(store, f"leave_{mode}_{store}")
    plan = begun(served, to, mode)
    interrupt(plan, at_third_batch)
    write(served, to, strangers())

    result = plan.run(allow=["overwrite-records"])
    assert result.verdict is Verdict.PASSED
    assert theirs(served, to)["document"] == SENT.documents[LATE]
    (hazard,) = result.hazards
    assert hazard.name == "overwrite-records"
    assert hazard.allowed_by.startswith("--allow by ")

    undone = plan.rollback(confirmed=True)
    assert undone.removed == COUNT - 1
    assert SENT.ids[LATE] in served.read(to)


def test_what_comes_during_the_copy_is_found_where_a_plain_insert_fails(
    served: Places, at_third_batch: Any
) -> None:
    to = served.options("pgvector", "during")
    plan = begun(served, to)
    at_third_batch(lambda: write(served, to, strangers()))
    with pytest.raises(HazardError, match=str(SENT.ids[LATE])):
        plan.run()
    assert theirs(served, to) == {"document": "somebody else's", "theirs": True}


@pytest.mark.parametrize("store", ["chroma", "pgvector"])
def test_the_very_record_that_is_to_be_written_may_be_there(
    served: Places, at_third_batch: Any, store: str
) -> None:
    """A batch that was written and not journalled leaves such, far ahead at times."""
    to = served.options(store, f"very_{store}")
    plan = begun(served, to)
    interrupt(plan, at_third_batch)
    write(served, to, SENT.take([LATE]))
    assert plan.resume().verdict is Verdict.PASSED
