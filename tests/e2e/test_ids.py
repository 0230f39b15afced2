"""Ids that come back, ids that collide, and fields of the user's own named like ours."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runner import load_plan
from runner.copy.ids import uuid_for
from runner.model import Batch, Metadata
from runner.results import DryRunResult
from tests.e2e.places import Places, records

COUNT = 1_500


def with_metadata(batch: Batch, **rows: dict[str, Any]) -> Batch:
    """*batch* with other metadata in rows that are named as ``r1400``."""
    objects = [dict(each) for each in batch.metadata.objects()]
    for name, metadata in rows.items():
        objects[int(name[1:])] = metadata
    return batch.with_(metadata=Metadata.of(objects))


def dry_run(places: Places, batch: Batch, to: str = "files", **more: Any) -> DryRunResult:
    source, target = places.options("files", "source"), places.options(to, "target")
    places.fill(source, batch, id_kind="mixed")
    return load_plan(places.plan(source, target, **more)).dry_run()


def test_ids_that_collide_once_originals_are_restored_are_found_before_the_first_write(
    places: Places,
) -> None:
    """The record that is to get its original id back stands far behind what is looked at."""
    ids: list[int | str] = [f"doc-{row:05d}" for row in range(COUNT)]
    ids[1400] = uuid_for("doc-00003")
    batch = with_metadata(records(COUNT).with_(ids=ids), r1400={"original_id": "doc-00003"})
    tried = dry_run(places, batch)
    assert tried.exit_code == 3
    (problem,) = tried.problems
    assert "doc-00003" in problem.what
    assert "original_id" in problem.what
    assert problem.hint == "`ids: keep` leaves them as they are"
    kept = load_plan(
        places.plan(
            places.options("files", "source"), places.options("files", "target"), ids="keep"
        )
    ).run()
    assert kept.exit_code == 0
    found = places.read(places.options("files", "target"))
    assert found.keys() == set(ids)
    assert found[ids[1400]][2] == {"original_id": "doc-00003"}


def test_ids_that_a_source_holds_twice_are_not_said_to_be_a_matter_of_the_map(
    places: Places,
) -> None:
    rows = [{"id": each, "vector": [1.0, 2.0]} for each in ("a", "b", "a")]
    (places.folder / "source.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    source = {"store": "files", "path": "source.jsonl"}
    tried = load_plan(places.plan(source, places.options("chroma", "target"))).dry_run()
    assert tried.exit_code == 3
    (problem,) = tried.problems
    assert problem.what == 'the source holds some ids more than once: "a"'
    assert "no map of `ids:` tells equal ones apart" in problem.hint


def test_a_single_record_far_behind_gets_its_original_id_back(places: Places) -> None:
    ids: list[int | str] = [f"doc-{row:05d}" for row in range(COUNT)]
    ids[1400] = uuid_for("far")
    batch = with_metadata(records(COUNT).with_(ids=ids), r1400={"original_id": "far"})
    source, target = places.options("files", "source"), places.options("jsonl", "target")
    places.fill(source, batch)
    result = load_plan(places.plan(source, target)).run()
    assert result.exit_code == 0
    found = places.read(target)
    assert found["far"][2] == {}
    assert ids[1400] not in found
    (row,) = [each for each in result.losses if each.field == "id"]
    assert (row.what, row.records, row.policy) == (
        "original_id → id again", 1, "restored by the runner",
    )  # fmt: skip


@pytest.mark.parametrize("mark", [{}, {"runner_id": "mine"}])
def test_an_original_id_of_the_users_own_changes_nothing(
    places: Places, mark: dict[str, Any]
) -> None:
    batch = records(3).with_(
        ids=[42, 43, 44],
        metadata=Metadata.of([{"original_id": str(each), **mark} for each in (42, 43, 44)]),
    )
    tried = dry_run(places, batch)
    assert (tried.exit_code, tried.losses) == (0, ())
    assert {each.note for each in tried.fields} == {"kept"}
    load_plan(places.folder / "plan.yaml").run()
    found = places.read(places.options("files", "target"))
    assert {each: found[each][2] for each in found} == {
        each: {"original_id": str(each), **mark} for each in (42, 43, 44)
    }
    assert all(type(each) is int for each in found)


def test_ids_that_became_text_come_back_as_the_integers_they_were(places: Places) -> None:
    sent, there, back = (
        places.options("files", "sent"),
        places.options("chroma", "there"),
        places.options("files", "back"),
    )
    places.fill(sent, records(5, kind="integer"), id_kind="integer")
    assert load_plan(places.plan(sent, there, name="to")).run().exit_code == 0
    assert places.read(there)["3"][2]["original_id"] == 3
    plan = load_plan(places.plan(there, back, name="fro"))
    tried = plan.dry_run()
    notes = {each.name: each.note for each in tried.fields}
    assert notes["original_id"] == notes["runner_id"] == "restored by the runner"
    assert plan.run().exit_code == 0
    before, after = places.read(sent), places.read(back)
    assert {each: after[each][1:] for each in after} == {each: before[each][1:] for each in before}
    assert all(type(each) is int for each in after)


def test_a_field_of_the_users_own_called_runner_json_stays(places: Places) -> None:
    """Unless it is spelled as ours is, which names fields that hold other JSON than text."""
    own = [
        {"runner_json": "[]"},
        {"runner_json": '["a"]', "a": '"text"'},
        {"runner_json": '["a"]', "a": "{ }"},
        {"runner_json": '["a", "b"]', "a": "1", "b": "2"},
    ]
    dry_run(places, records(4).with_(metadata=Metadata.of(own)))
    assert load_plan(places.folder / "plan.yaml").run().exit_code == 0
    found = places.read(places.options("files", "target"))
    assert [found[f"doc-{row:05d}"][2] for row in range(4)] == own


def test_a_field_called_runner_json_is_not_overwritten_by_ours(places: Places) -> None:
    own = Metadata.of([{"runner_json": "mine", "nested": {"a": [None]}}, {}])
    tried = dry_run(places, records(2).with_(metadata=own), "chroma")
    assert tried.exit_code == 3
    assert "metadata.runner_json exists already" in tried.problems[0].what
