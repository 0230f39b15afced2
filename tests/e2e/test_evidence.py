"""What the checks say of records that came, went or changed, on either side."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import pytest
from qdrant_client import QdrantClient, models

from runner import ProgressEvent, load_plan
from runner.model import Batch
from runner.results import CheckResult, RunResult, Verdict
from runner.stores.base import Access
from tests.e2e.conftest import Cli
from tests.e2e.places import DIM, Places, records

COUNT = 60


def check(result: RunResult, name: str) -> CheckResult:
    return next(each for each in result.checks if each.name == name)


def at(phase: str, act: Callable[[], None]) -> Callable[[ProgressEvent], None]:
    """A listener that acts once, when a run comes to *phase*."""
    left = [act]

    def tell(event: ProgressEvent) -> None:
        if event.phase == phase and left:
            left.pop()()

    return tell


def change(
    places: Places, options: dict[str, Any], *, put: Batch | None = None, gone: tuple[str, ...] = ()
) -> None:
    """What another program does to a collection."""
    with places.opened(options, Access.WRITE) as store:
        if put is not None:
            store.write(put)
        if gone:
            store.delete(list(gone))
        store.finish(store.describe())


def newcomer(name: str = "newcomer") -> Batch:
    return records(1, seed=99).with_(ids=[name])


def without(batch: Batch, *ids: str) -> Batch:
    return batch.take([row for row, each in enumerate(batch.ids) if each not in ids])


# the source changes


@pytest.mark.parametrize("target", ["files", "qdrant-edge"])
def test_one_new_and_one_gone_record_of_the_source_fail_by_name(
    served: Places, target: str
) -> None:
    """The counts agree all the while; on Qdrant the ids are mapped besides."""
    source = served.options("pgvector", f"live_{target.replace('-', '_')}")
    served.fill(source, records(COUNT))
    plan = load_plan(served.plan(source, served.options(target, "target"), batch_size=20))

    result = plan.run(
        at("index", lambda: change(served, source, put=newcomer(), gone=("doc-00001",)))
    )

    assert result.verdict is Verdict.FAILED
    assert check(result, "count").verdict is Verdict.PASSED
    ids = check(result, "ids")
    assert ids.summary == "the source changed: 1 new, 1 gone"
    assert '"newcomer": in the source, never copied' in ids.failures
    assert len(ids.failures) == 2
    assert ids.failures[1].endswith(": in the target, gone from the source")
    assert "run again" in ids.advice
    assert "another program wrote to the target" not in ids.advice
    assert (ids.evidence["never_copied"], ids.evidence["gone_from_source"]) == (1, 1)


def test_verify_blames_the_side_that_changed(places: Places, cli: Cli) -> None:
    source, target = places.options("chroma", "source"), places.options("files", "target")
    sent = records(COUNT)
    places.fill(source, sent)
    plan = load_plan(places.plan(source, target))
    assert plan.run().verdict is Verdict.PASSED
    change(places, source, put=newcomer())

    ids = check(plan.verify(), "ids")
    assert ids.summary == "the source changed: 1 new, 0 gone"
    assert "the target is as it was written" in ids.advice
    screen = cli("verify", "plan.yaml")
    assert screen.returncode == 7
    assert "the source changed: 1 new, 0 gone" in screen.stdout

    change(places, target, gone=("doc-00003",), put=newcomer("intruder"))
    ids = check(plan.verify(), "ids")
    assert ids.summary == "1 missing · 1 extra · the source changed: 1 new, 0 gone"
    assert set(ids.failures) == {
        '"newcomer": in the source, never copied', '"doc-00003": missing', '"intruder": extra',
    }  # fmt: skip
    assert "another program wrote to the target" in ids.advice


def test_what_was_set_aside_is_not_new_in_the_source(places: Places) -> None:
    source, target = places.options("files", "source"), places.options("files", "target")
    sent = records(COUNT)
    places.fill(source, sent)
    plan = places.plan(
        source, target, validation={"max_dead_letters": COUNT},
        transforms=[{"cast": {"title": "int"}, "on_error": "dead_letter"}],
    )  # fmt: skip
    result = load_plan(plan).run()
    assert result.dead_letters == COUNT
    assert check(result, "ids").verdict is Verdict.PASSED


def test_ids_that_transforms_made_are_compared_with_the_source(places: Places) -> None:
    source, target = places.options("jsonl", "source"), places.options("files", "target")
    places.fill(source, records(COUNT))
    plan = places.plan(
        source, target, ids={"from": "title"}, transforms=[{"lower": ["title"]}]
    )  # fmt: skip
    result = load_plan(plan).run()
    assert result.verdict is Verdict.PASSED
    assert "no 5" in places.read(target)


# the target changes


@pytest.mark.parametrize("limits", [{"limit": 40}, {"validation": {"ids": "none"}}])
def test_verify_names_what_is_missing_whatever_the_plan_leaves_out(
    places: Places, limits: dict[str, Any]
) -> None:
    source, target = places.options("files", "source"), places.options("files", "target")
    places.fill(source, records(COUNT))
    plan = load_plan(places.plan(source, target, **limits))
    assert plan.run().verdict is Verdict.PASSED
    change(places, target, gone=("doc-00003",), put=newcomer("intruder"))

    result = plan.verify()

    assert result.verdict is Verdict.FAILED
    digests = check(result, "checksum")
    assert digests.verdict is Verdict.FAILED
    assert digests.failures == ('"doc-00003": missing',)
    assert digests.summary.endswith("records as they were written · 1 missing")
    if "limit" in limits:
        ids = check(result, "ids")
        assert set(ids.failures) == {'"doc-00003": missing', '"intruder": extra'}
        assert "source" not in ids.summary


# what was not read back


def awkward(count: int) -> Batch:
    """Records that most stores alter: long vectors, fractional numbers, a negative zero."""
    plain = records(count)
    return plain.with_(
        vectors={"": plain.vector * np.float32(3.7)},
        metadata=type(plain.metadata).of(
            [{**each, "share": row / 7, "zero": -0.0} for row, each in enumerate(plain.metadata)]
        ),
    )


ALTERING = ["qdrant-edge", "chroma", "pgvector", "files"]


@pytest.mark.parametrize("checksum", ["sample", "none"])
@pytest.mark.parametrize("store", ALTERING)
def test_an_untouched_target_is_as_it_was_written_and_goes_wholly(
    served: Places, store: str, checksum: str
) -> None:
    source = served.options("jsonl", "source")
    target = served.options(store, f"untouched_{checksum}")
    served.fill(source, awkward(COUNT))
    plan = load_plan(served.plan(source, target, batch_size=5, validation={"checksum": checksum}))
    assert plan.run().verdict is Verdict.PASSED

    result = plan.verify()

    digests = check(result, "checksum")
    assert digests.failures == ()
    assert digests.summary == f"{COUNT} of {COUNT} records as they were written"
    alters = store in ("qdrant-edge", "chroma")
    not_read_back = 50 if checksum == "sample" else COUNT
    unseen = f"{not_read_back} without their vectors and fractional numbers"
    assert digests.coverage == (unseen if alters else "all compared")
    preview = plan.rollback()
    assert (preview.removed, preview.kept) == (COUNT, {})
    assert bool(preview.cannot_tell) == alters
    assert plan.rollback(confirmed=True).removed == COUNT


@pytest.mark.parametrize("checksum", ["sample", "none"])
@pytest.mark.parametrize("store", ALTERING)
def test_a_record_that_was_edited_since_is_seen_although_it_was_not_read_back(
    served: Places, store: str, checksum: str
) -> None:
    source = served.options("jsonl", "source")
    target = served.options(store, f"edited_{checksum}")
    sent = awkward(COUNT).with_(ids=records(COUNT, kind="uuid").ids)
    served.fill(source, sent)
    plan = load_plan(served.plan(source, target, batch_size=5, validation={"checksum": checksum}))
    assert plan.run().verdict is Verdict.PASSED
    edited = sent.ids[17]
    with served.opened(target, Access.WRITE) as there:
        there.write(there.fetch([edited]).with_(documents=["precious edit"]))

    digests = check(plan.verify(), "checksum")

    assert digests.failures == (f'"{edited}": changed since it was written',)
    assert plan.rollback().kept == {"changed since this run wrote them": (1, (edited,))}
    plan.rollback(confirmed=True)
    assert list(served.read(target)) == [edited]


def test_a_rollback_says_which_changes_it_cannot_see(places: Places, cli: Cli) -> None:
    places.fill(places.options("jsonl", "source"), awkward(COUNT))
    places.plan(
        places.options("jsonl", "source"), places.options("chroma", "target"),
        validation={"checksum": "none"},
    )  # fmt: skip
    assert cli("run", "plan.yaml").returncode == 0
    preview = cli("rollback", "plan.yaml")
    assert f"vectors and fractional numbers of {COUNT} records" in " ".join(preview.stdout.split())
    assert cli("rollback", "plan.yaml", "--yes").returncode == 0


# an embedded source goes on while its private copy is read


def local_mode(folder: Path, batch: Batch) -> None:
    """What the client's own local mode leaves; closed again."""
    client = QdrantClient(path=str(folder))
    if not client.collection_exists("source"):
        of = models.VectorParams(size=DIM, distance=models.Distance.COSINE)
        client.create_collection("source", vectors_config=of)
    points = [
        models.PointStruct(id=each, vector=batch.vector[row].tolist(), payload={})
        for row, each in enumerate(batch.ids)
    ]
    client.upsert("source", points)
    client.close()


@pytest.mark.parametrize("store", ["chroma", "qdrant-edge", "qdrant-local"])
def test_an_embedded_source_that_is_written_to_during_the_run_is_named(
    places: Places, cli: Cli, store: str
) -> None:
    sent, late = records(COUNT, kind="uuid"), records(COUNT + 1, kind="uuid").take([COUNT])
    if store == "qdrant-local":
        source = {"store": "qdrant", "path": "local", "collection": "source"}
        local_mode(places.folder / "local", sent)
    else:
        source = places.options(store, "source")
        places.fill(source, sent, id_kind="uuid")

    def write() -> None:
        if store == "qdrant-local":
            local_mode(places.folder / "local", late)
        else:
            change(places, source, put=late)

    plan = load_plan(places.plan(source, places.options("files", "target"), batch_size=20))
    result = plan.run(at("copy", write))

    assert check(result, "ids").verdict is Verdict.PASSED  # judged by the private copy
    (remark,) = (each for each in result.warnings if "written to during the run" in each.what)
    assert "`runner verify` names those" in remark.hint
    assert "was written to during the run" in " ".join(cli("report", "plan.yaml").stdout.split())
    verified = plan.verify()
    assert check(verified, "ids").summary == "the source changed: 1 new, 0 gone"
    assert not any("during the run" in each.what for each in verified.warnings)


def test_an_embedded_source_that_is_only_read_during_the_run_is_no_news(places: Places) -> None:
    """Merely opening a Chroma writes to its database; so does another collection's writer."""
    source = places.options("chroma", "source")
    other = {**source, "collection": "another"}
    places.fill(source, records(COUNT))
    places.fill(other, records(5))

    def read() -> None:
        with places.opened({**source, "snapshot": "none"}) as there:
            assert there.count() == COUNT
        change(places, other, put=newcomer())

    plan = load_plan(places.plan(source, places.options("files", "target")))
    before = (places.folder / "source_chroma" / "chroma.sqlite3").read_bytes()
    assert not plan.run(at("copy", read)).warnings
    assert (places.folder / "source_chroma" / "chroma.sqlite3").read_bytes() != before


# what the target is


@pytest.mark.parametrize(
    ("store", "index"),
    [
        ("pgvector", {"type": "hnsw", "m": 8, "ef_construction": 32, "ef_search": 80}),
        ("pgvector", {"type": "ivfflat", "lists": 4, "probes": 4}),
        ("pgvector", {"type": "none"}),
        ("chroma", {"m": 8, "ef_construction": 50, "ef_search": 60}),
        ("faiss", {"type": "hnsw", "m": 8, "ef_construction": 50, "ef_search": 60}),
        ("faiss", {"type": "ivfflat", "lists": 4, "probes": 4}),
        ("qdrant-edge", {"type": "hnsw", "m": 8, "ef_construction": 50, "ef_search": 60}),
        ("qdrant-double", {"type": "hnsw", "m": 8, "ef_construction": 50, "ef_search": 60}),
    ],
)
def test_every_index_that_a_plan_may_ask_for_is_found_as_planned(
    served: Places, store: str, index: dict[str, Any]
) -> None:
    source = served.options("files", "source")
    served.fill(source, records(COUNT * 4))
    name = f"indexed_{index.get('type', 'own')}"
    target = {**served.options(store, name), "index": index}
    plan = load_plan(served.plan(source, target, validation={"queries": "none"}))
    assert not check(plan.run(), "shape").failures
    assert not check(plan.verify(), "shape").failures
    more = {**target, "if_exists": "append"}
    del more["index"]
    served.fill(served.options("files", "more"), records(COUNT, seed=5, kind="uuid"))
    append = load_plan(
        served.plan(served.options("files", "more"), more, "append", validation={"queries": "none"})
    )
    assert not check(append.run(), "shape").failures
    append.rollback(confirmed=True)
    plan.rollback(confirmed=True)


@pytest.mark.parametrize(
    ("statements", "wrong"),
    [
        (["DROP INDEX {index}"], ["index: missing, expected hnsw m 16 ef_construction 64"]),
        (
            [
                "DROP INDEX {index}",
                "CREATE INDEX ON {table} USING hnsw (embedding vector_cosine_ops) WITH (m = 4)",
            ],
            ["index: m 4, expected 16"],
        ),
        (
            [
                "DROP INDEX {index}",
                "CREATE INDEX ON {table} USING ivfflat (embedding vector_cosine_ops)",
            ],
            ["index: ivfflat lists 100, expected hnsw m 16 ef_construction 64"],
        ),
        (
            [
                "DROP INDEX {index}",
                "CREATE INDEX ON {table} USING hnsw (embedding vector_l2_ops)",
            ],
            ["vector: metric l2, expected cosine"],
        ),
        (
            ["ALTER TABLE {table} ALTER embedding TYPE halfvec({dim})"],
            ["vector: float16, expected float32"],
        ),
    ],
)
def test_an_index_that_is_not_as_planned_fails_verification(
    served: Places, statements: list[str], wrong: list[str]
) -> None:
    source = served.options("files", "source")
    served.fill(source, records(COUNT))
    target = served.options("pgvector", "reshaped")
    plan = load_plan(served.plan(source, target, validation={"queries": "none"}))
    assert check(plan.run(), "shape").verdict is Verdict.PASSED
    with closing(psycopg2.connect(served.environment["TEST_DSN"])) as db, db.cursor() as cursor:
        cursor.execute(
            "SELECT indexname FROM pg_indexes WHERE tablename = 'reshaped' "
            "AND indexdef LIKE '%hnsw%'"
        )
        ((index,),) = cursor.fetchall()
        if len(statements) == 1 and "TYPE" in statements[0]:
            statements = ["DROP INDEX {index}", *statements, _AS_HALF]
        for each in statements:
            cursor.execute(each.format(index=index, table="reshaped", dim=DIM))
        db.commit()

    result = plan.verify()

    shape = check(result, "shape")
    assert shape.verdict is Verdict.FAILED
    assert list(shape.failures) == wrong
    assert "Build the index anew" in shape.advice
    plan.rollback(confirmed=True)


_AS_HALF = (
    "CREATE INDEX ON {table} USING hnsw (embedding halfvec_cosine_ops) "
    "WITH (m = 16, ef_construction = 64)"
)


# what the screen makes of it

UNCHECKED = {
    "count": "none", "ids": "none", "checksum": "none", "metadata": "none", "queries": "none",
}  # fmt: skip
SWITCH = "switch your application's reads"


def test_a_run_whose_checks_are_all_off_does_not_say_that_it_passed(
    places: Places, cli: Cli
) -> None:
    places.fill(places.options("files", "source"), records(COUNT))
    places.plan(
        places.options("files", "source"), places.options("files", "target"), validation=UNCHECKED
    )
    found = cli("run", "plan.yaml", "--quiet")
    assert found.returncode == 0
    assert found.stdout.startswith("DONE, nothing was checked")
    assert "PASSED" not in found.stdout
    assert SWITCH not in found.stdout
    assert "next  runner verify plan.yaml" in found.stdout
    for form in ("markdown", "html"):
        assert "DONE, nothing was checked" in cli("report", "plan.yaml", "--format", form).stdout
    verified = cli("verify", "plan.yaml", "--quiet")
    assert verified.stdout.startswith("PASSED")
    assert SWITCH in verified.stdout


def test_a_limited_run_says_so_first_and_is_not_to_be_switched_to(places: Places, cli: Cli) -> None:
    places.fill(places.options("files", "source"), records(COUNT))
    places.plan(places.options("files", "source"), places.options("files", "target"), limit=25)
    for command in ("run", "verify"):
        found = cli(command, "plan.yaml", "--quiet")
        assert found.returncode == 0, found.stdout
        assert found.stdout.startswith("PASSED, only a part was copied")
        assert SWITCH not in found.stdout
        assert "run without the limit" in found.stdout
