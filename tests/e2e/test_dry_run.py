"""A dry run, an inspection and a compile change no byte anywhere, whatever the store."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import psycopg2
import pytest

from runner import load_plan
from runner.model import Metadata, Metric
from runner.results import LossRow, Verdict, to_json
from runner.testing import folder_digest
from tests.e2e.conftest import Cli
from tests.e2e.places import STORES, Places, records


def everything(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file below *folder*: its hash and when it was last written."""
    digests = folder_digest(folder)
    return {
        name: (digest, os.stat(folder / name).st_mtime_ns if (folder / name).exists() else 0)
        for name, digest in digests.items()
    }


@pytest.mark.parametrize("store", STORES)
def test_a_dry_run_writes_nothing_anywhere(served: Places, cli: Cli, store: str) -> None:
    """As source and as an existing target; both hold afterwards what they held before."""
    word = store.replace("-", "_")
    from_, to = served.options(store, f"dry_{word}"), served.options(store, f"dry_{word}_to")
    served.fill(from_, records(80, kind="uuid"), id_kind="uuid")
    served.fill(to, records(10, kind="uuid", seed=8), id_kind="uuid")
    held = served.digest(from_).hex(), served.digest(to).hex()
    served.plan(from_, {**to, "if_exists": "append"}, allow=["overwrite-records"])
    before = everything(served.folder)

    for command in (("run", "plan.yaml", "--dry-run"), ("inspect", "plan.yaml")):
        found = cli(*command)
        assert found.returncode == 0, found.stderr

    assert everything(served.folder) == before
    assert (served.digest(from_).hex(), served.digest(to).hex()) == held


@pytest.mark.parametrize("store", STORES)
def test_a_dry_run_onto_a_target_that_does_not_exist_does_not_make_it(
    served: Places, cli: Cli, store: str
) -> None:
    to = served.options(store, f"absent_{store.replace('-', '_')}")
    served.fill(served.options("files", "source"), records(20, kind="uuid"), id_kind="uuid")
    served.plan(served.options("files", "source"), to)
    before = everything(served.folder)
    found = cli("run", "plan.yaml", "--dry-run")
    assert found.returncode == 0, found.stderr
    assert everything(served.folder) == before
    with served.opened(to) as target:
        assert target.describe() is None


@pytest.mark.parametrize("store", ["pgvector", "chroma", "faiss"])
def test_an_empty_source_promises_no_index(served: Places, store: str) -> None:
    """Its vectors have no dimension yet, without which there is none."""
    (served.folder / "nothing.jsonl").write_text("")
    from_ = {"store": "files", "path": "nothing.jsonl", "metric": "cosine"}
    path = served.plan(from_, served.options(store, f"from_nothing_{store}"))
    tried = load_plan(path).dry_run()
    assert tried.exit_code == 0
    assert ["dimension is not known" in each.what for each in tried.warnings] == [True]
    steps = {each.kind: each.text for each in tried.steps}
    assert steps["index"].startswith("no search index")
    if store == "pgvector":
        assert "index" not in steps["create"]
    assert load_plan(path).run().verdict.value == "passed"


@pytest.mark.parametrize("store", ["qdrant-edge", "qdrant-double"])
def test_a_store_that_needs_a_dimension_refuses_an_empty_source(served: Places, store: str) -> None:
    (served.folder / "nothing.jsonl").write_text("")
    from_ = {"store": "files", "path": "nothing.jsonl", "metric": "cosine"}
    to = served.options(store, f"from_nothing_{store.replace('-', '_')}")
    tried = load_plan(served.plan(from_, to)).dry_run()
    assert tried.exit_code == 3
    assert ["holds no vectors" in each.what for each in tried.problems] == [True]


def test_the_run_does_the_steps_that_the_dry_run_showed(places: Places) -> None:
    places.fill(places.options("files", "source"), records(60))
    path = places.plan(
        places.options("files", "source"), places.options("faiss", "target"), batch_size=20
    )
    shown = load_plan(path).dry_run()
    ran = load_plan(path).run()
    assert [(each.kind, each.text) for each in shown.steps] == [
        (each.kind, each.text) for each in ran.steps
    ]
    assert to_json(shown.fields) == to_json(ran.fields)
    assert shown.fingerprint == ran.fingerprint


def test_the_library_returns_what_the_screens_show(places: Places) -> None:
    places.fill(places.options("files", "source"), records(60))
    path = places.plan(places.options("files", "source"), places.options("files", "target"))
    plan = load_plan(path)
    assert plan.status().phase == "never run"
    assert [type(each).__name__ for each in plan.compile().steps] == [
        "Create", "Copy", "Index", "Check", "Report",
    ]  # fmt: skip
    events = []
    result = plan.run(events.append)
    assert {"preflight", "create", "copy", "index", "check"} <= {each.phase for each in events}
    assert max(each.records for each in events) == 60
    assert plan.report().target_digest == result.target_digest
    assert plan.status().phase == "finished"
    assert {each.side for each in plan.inspect().sides} == {"source", "target"}
    assert plan.rollback().done is False
    assert plan.rollback(confirmed=True).done is True
    assert plan.status().phase == "rolled back"


@pytest.mark.parametrize("length", [1e20, 1e-17])
def test_lengths_that_a_store_does_not_keep_are_named_and_set_aside(
    places: Places, length: float
) -> None:
    """Chroma under cosine would give NaN or zeros back."""
    batch = records(60)
    batch.vector[7] *= np.float32(length)
    places.fill(places.options("files", "source"), batch)
    path = places.plan(
        places.options("files", "source"), places.options("chroma", "target"), batch_size=20
    )
    tried = load_plan(path).dry_run()
    assert tried.exit_code == 3
    (problem,) = tried.problems
    assert "the target keeps 1e-15 to 1e+18" in problem.what
    assert "a value in metadata also with `fields`; validation.max_dead_letters" in problem.hint
    path = places.plan(
        places.options("files", "source"),
        places.options("chroma", "target"),
        validation={"max_dead_letters": 1},
    )
    result = load_plan(path).run()
    assert (result.verdict.value, result.records, result.dead_letters) == ("passed", 59, 1)


@pytest.mark.parametrize("length", [1e20, 1e-17])
@pytest.mark.parametrize("store", ["qdrant-edge", "qdrant-double", "pgvector", "faiss"])
def test_lengths_that_other_stores_cope_with_arrive(
    served: Places, store: str, length: float
) -> None:
    word = f"{store}_{length:.0e}".replace("-", "_").replace("+", "_")
    batch = records(60, kind="uuid")
    batch.vector[7] *= np.float32(length)
    served.fill(served.options("files", "source"), batch)
    path = served.plan(served.options("files", "source"), served.options(store, word))
    result = load_plan(path).run()
    assert [
        (each.name, each.summary) for each in result.checks if each.verdict.value == "failed"
    ] == []
    assert (result.verdict.value, result.records, result.dead_letters) == ("passed", 60, 0)


NUMBERS = [{"n": "1"}, {"n": "3.7"}, {"n": "x"}, {"n": "4"}]


@pytest.mark.parametrize(
    ("on_error", "end", "reversible"),
    [("set_null", "null", False), ("keep", "kept as it was", True)],
)
def test_what_a_transform_cannot_handle_is_counted_in_the_loss_report(
    places: Places, on_error: str, end: str, reversible: bool
) -> None:
    """In the dry run from the sample, in the result of all."""
    source, target = places.options("files", "source"), places.options("jsonl", "target")
    places.fill(source, records(4).with_(metadata=Metadata.of(NUMBERS)))
    plan = load_plan(
        places.plan(source, target, transforms=[{"cast": {"n": "int"}, "on_error": on_error}])
    )
    expected = (
        LossRow("n", f"transforms[0].cast cannot handle it → {end}", 2, 4, on_error, reversible),
    )
    assert plan.dry_run().losses == expected
    assert plan.run().losses == expected


EMPTIES = """
import numpy as np

def empties(record):
    if record.metadata["n"] == "1":
        record.document = None
    if record.metadata["n"] == "3.7":
        record.document = "other"
        record.vectors = {"": np.zeros(16, dtype=np.float32)}
    if record.metadata["n"] == "4":
        return None
    return record
"""


def test_documents_and_vectors_that_a_transform_changes_are_in_the_loss_report(
    places: Places,
) -> None:
    source, target = places.options("files", "source"), places.options("jsonl", "target")
    places.fill(source, records(4).with_(metadata=Metadata.of(NUMBERS)), metric=Metric.L2)
    (places.folder / "mine.py").write_text(EMPTIES)
    plan = load_plan(
        places.plan(
            source, target, validation={"max_dead_letters": 1, "queries": "none"},
            transforms=[{"python": "mine.py:empties", "on_error": "dead_letter"}],
        )
    )  # fmt: skip
    for losses in (plan.dry_run().losses, plan.run().losses):
        assert [(each.field, each.what, each.records, each.reversible) for each in losses] == [
            ("document", "changed by a transform", 1, False),
            ("document", "emptied by a transform", 1, False),
            ("vector", "all zero or missing after a transform", 1, False),
        ]


def test_only_what_the_plan_drops_is_said_to_be_dropped(places: Places, cli: Cli) -> None:
    """Not what only records have that do not fit."""
    own = [{"a": 1, "gone": 2}, {"a": 1, "deep": {"b": 3}, "odd": 4}]
    places.fill(places.options("files", "source"), records(2).with_(metadata=Metadata.of(own)))
    path = places.plan(
        places.options("files", "source"), places.options("chroma", "target"),
        transforms=[{"drop": ["gone"]}], unsupported="refuse",
    )  # fmt: skip
    tried = load_plan(path).dry_run()
    assert tried.exit_code == 3
    unfit = "only in records that do not fit"
    assert {each.name: each.note for each in tried.fields} == {
        "a": "kept", "gone": "dropped by the plan", "deep": unfit, "odd": unfit,
    }  # fmt: skip
    found = cli("run", "plan.yaml", "--dry-run", "--format", "markdown")
    lines = [line for line in found.stdout.splitlines() if unfit in line]
    assert len(lines) == 2
    assert all("50 %" in line for line in lines)


def test_a_field_whose_name_does_not_fit_is_said_to_be_kept_beside(places: Places) -> None:
    own = [{"a": 1, "": 3, "#b": None}]
    places.fill(places.options("files", "source"), records(1).with_(metadata=Metadata.of(own)))
    path = places.plan(places.options("files", "source"), places.options("chroma", "target"))
    tried = load_plan(path).dry_run()
    assert tried.exit_code == 0
    beside = "kept in runner_fields"
    assert {each.name: each.note for each in tried.fields if each.note != "added"} == {
        "a": "kept", "": beside, "#b": beside,
    }  # fmt: skip
    assert [(each.field, each.reversible) for each in tried.losses if each.policy == "json"] == [
        ("", True), ("#b", True),
    ]  # fmt: skip


def test_a_changed_metric_names_what_the_existing_collection_compares_by(served: Places) -> None:
    source = served.options("files", "source")
    served.fill(source, records(9))
    for table, index in (("metric_l2", {"type": "hnsw"}), ("metric_none", {"type": "none"})):
        to = served.options("pgvector", table)
        first = load_plan(
            served.plan(source, {**to, "metric": "l2", "index": index}, allow=["changed-metric"])
        )
        first.run()
        first.state.folder.rename(served.folder / table)
        tried = load_plan(served.plan(source, {**to, "if_exists": "append"})).dry_run()
        (hazard,) = [each for each in tried.hazards if each.name == "changed-metric"]
        assert hazard.why == f"{table} compares by l2, the source by cosine"


def test_a_table_without_an_index_has_no_metric_of_its_own(served: Places) -> None:
    """It is searched by what the plan says, so that saying it is all it takes."""
    to = served.options("pgvector", "metric_open")
    with psycopg2.connect(served.environment["TEST_DSN"]) as session:
        session.cursor().execute("CREATE EXTENSION IF NOT EXISTS vector")
        session.cursor().execute(
            "CREATE TABLE metric_open (id text PRIMARY KEY, document text, metadata jsonb, "
            "embedding vector(16))"
        )
    session.close()
    source = served.options("files", "source")
    served.fill(source, records(9), metric=Metric.L2)
    tried = load_plan(served.plan(source, {**to, "if_exists": "append"})).dry_run()
    (hazard,) = tried.hazards
    assert "no metric of its own" in hazard.why
    assert "`target.metric`" in hazard.why
    said = load_plan(served.plan(source, {**to, "metric": "l2", "if_exists": "append"}))
    assert said.dry_run().hazards == ()
    assert said.run().exit_code == 0


def test_columns_whose_type_metadata_does_not_carry_are_named(served: Places) -> None:
    from_ = served.options("pgvector", "typed_from")
    with psycopg2.connect(served.environment["TEST_DSN"]) as session:
        session.cursor().execute("CREATE EXTENSION IF NOT EXISTS vector")
        session.cursor().execute(
            "CREATE TYPE mood AS ENUM ('fine'); "
            "CREATE TABLE typed_from (id text PRIMARY KEY, embedding vector(2), "
            "lang text, size int, day date, raw bytea, host inet, price numeric, days date[], "
            "words text[], of mood); "
            "INSERT INTO typed_from VALUES ('a', '[1,2]', 'en', 3, '2024-02-01', '\\xdead', "
            "'10.0.0.1', 1.50, '{2024-02-01}', '{x}', 'fine')"
        )
    session.close()
    to = served.options("files", "typed_to")
    plan = load_plan(served.plan(from_, to, validation={"queries": "none"}))
    expected = {
        "day": "date → text", "raw": "bytea → text", "host": "inet → text",
        "price": "numeric → number", "days": "date[] → list of text", "of": "mood → JSON",
    }  # fmt: skip
    tried = plan.dry_run()
    assert {each.field: each.what for each in tried.losses} == expected
    assert not any(each.reversible for each in tried.losses)
    notes = {each.name: each.note for each in tried.fields}
    assert notes == {**expected, "lang": "kept", "size": "kept", "words": "kept"}
    assert {each.field: each.what for each in plan.run().losses} == expected
    assert served.read(to)["a"][2]["day"] == "2024-02-01"
    # a PostgreSQL has the types as well, and keeps them in columns of their own
    there = served.options("pgvector", "typed_there")
    plan = load_plan(served.plan(from_, there, "types", validation={"queries": "none"}))
    tried = plan.dry_run()
    assert tried.losses == ()
    assert {each.note for each in tried.fields} == {"kept"}
    result = plan.run()
    assert (result.verdict, result.losses) == (Verdict.PASSED, ())
    assert served.digest(there) == served.digest(from_)
