"""A plan whose source is its target, or lies in its way, is refused whatever it calls them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import psycopg2
import pytest

from runner import load_plan
from runner.errors import PlanError
from runner.results import Verdict
from runner.testing import folder_digest
from tests.e2e.places import STORES, Places, records

Options = dict[str, Any]


def refused(places: Places, source: Options, target: Options, told: str) -> None:
    """As it says, before anything of it is written."""
    path = places.plan(source, target, allow=["overwrite-records", "replace-target"])
    before = folder_digest(places.folder)
    for act in (lambda: load_plan(path).dry_run(), lambda: load_plan(path).run()):
        with pytest.raises(PlanError, match=told):
            act()
    after = {name: each for name, each in folder_digest(places.folder).items() if name in before}
    assert after == before


@pytest.mark.parametrize("if_exists", ["append", "replace"])
@pytest.mark.parametrize("store", STORES)
def test_the_same_collection_is_no_target(served: Places, store: str, if_exists: str) -> None:
    here = served.options(store, f"one_{if_exists}_{store.replace('-', '_')}")
    served.fill(here, records(20, kind="uuid"), id_kind="uuid")
    held = served.digest(here)
    refused(served, here, {**here, "if_exists": if_exists}, "is the same collection")
    assert served.digest(here) == held


def linked(places: Places, name: str, to: str) -> str:
    (places.folder / name).symlink_to(places.folder / to)
    return name


@pytest.mark.parametrize(
    ("source", "target", "told"),
    [
        (lambda p: "data/a.parquet", lambda p: "./data/../data/a.parquet", "same collection"),
        (lambda p: linked(p, "link.parquet", "data/a.parquet"), lambda p: "data/a.parquet",
         "same collection"),
        (lambda p: "data/a.parquet", lambda p: f"{linked(p, 'link', 'data')}/a.parquet",
         "same collection"),
        (lambda p: "data", lambda p: "data/out.parquet", "is a folder around it"),
        (lambda p: "data", lambda p: "data/in/here.faiss", "is a folder around it"),
        (lambda p: "data/a.parquet", lambda p: "data", "lies in its folder"),
        (lambda p: "data/*.parquet", lambda p: "data/out.parquet", "pattern that matches it"),
        (lambda p: "data/**/*.parquet", lambda p: "data/in/out", "pattern that matches it"),
        (lambda p: f"{linked(p, 'link', 'data')}/*.parquet", lambda p: "data/out.parquet",
         "pattern that matches it"),
    ],
    ids=["dots", "linked file", "linked folder", "in the folder", "deep in the folder",
         "around the file", "glob", "deep glob", "linked glob"],
)  # fmt: skip
def test_files_in_each_others_way_are_told(
    places: Places, source: Callable[[Places], str], target: Callable[[Places], str], told: str
) -> None:
    (places.folder / "data").mkdir()
    places.fill({"store": "files", "path": "data/a.parquet"}, records(20))
    from_, to = source(places), target(places)
    store = "faiss" if to.endswith(".faiss") else "files"
    refused(
        places,
        {"store": "files", "path": from_},
        {"store": store, "path": to, "if_exists": "replace"},
        told,
    )


def test_a_table_is_known_under_another_spelling_of_its_schema_and_host(served: Places) -> None:
    here = served.options("pgvector", "spelt")
    served.fill(here, records(20))
    with closing(psycopg2.connect(served.environment["TEST_DSN"])) as session:
        parts = session.info.dsn_parameters
    served.environment["OTHER_DSN"] = " ".join(
        f"{key}={parts[key]}" for key in ("dbname", "user", "host", "port") if key in parts
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTHER_DSN", served.environment["OTHER_DSN"])
        other = {**here, "dsn": "${OTHER_DSN}", "schema": "public", "if_exists": "append"}
        refused(served, here, other, "is the same collection")


@pytest.mark.parametrize("store", ["chroma", "pgvector", "qdrant-double"])
def test_two_collections_of_one_engine_are_two(served: Places, store: str) -> None:
    word = store.replace("-", "_")
    from_ = served.options(store, f"two_{word}")
    to = {**from_}
    to["table" if store == "pgvector" else "collection"] = f"two_{word}_to"
    served.fill(from_, records(20, kind="uuid"), id_kind="uuid")
    result = load_plan(served.plan(from_, to)).run()
    assert (result.verdict, result.records) == (Verdict.PASSED, 20)


def test_files_beside_a_pattern_are_not_in_its_way(places: Places) -> None:
    (places.folder / "data").mkdir()
    places.fill({"store": "files", "path": "data/a.parquet"}, records(20))
    from_: Options = {"store": "files", "path": "data/*.parquet"}
    result = load_plan(places.plan(from_, {"store": "files", "path": "data/out.jsonl"})).run()
    assert (result.verdict, result.records) == (Verdict.PASSED, 20)
