"""Each namespace in a collection of its own (`namespace_to: collection`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from runner import load_plan, stores
from runner.copy.ids import uuid_for
from runner.errors import CapabilityError, HazardError, JournalError, PlanError, StoreError
from runner.model import Batch
from runner.plan import schema
from runner.results import Verdict
from runner.steps import divided
from runner.stores.base import Access
from runner.stores.files import FilesStore
from tests.conformance.test_toy import PLACES
from tests.e2e.places import Places, records
from tests.e2e.test_namespaces import COUNT, at, check, fill, move, tenants
from tests.toy import NamespacedToy

TO = {"namespace_to": "collection"}


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A source with namespaces that needs no engine."""
    schema.validator.cache_clear()
    with monkeypatch.context() as patched:
        patched.setitem(stores._BUILT_IN, "toy", "tests.toy:NamespacedToy")
        yield
    PLACES.clear()
    schema.validator.cache_clear()


def part(options: dict[str, Any], namespace: str) -> dict[str, Any]:
    """The plan's keys of the collection of one namespace."""
    key = next(each for each in ("collection", "table", "index", "path") if each in options)
    stem, dot, ending = options[key].partition(".")
    mark = "-" if key == "index" else "_"
    return {**options, key: f"{stem}{mark}{namespace}{dot}{ending}" if namespace else options[key]}


@pytest.mark.parametrize(
    "store",
    [
        "chroma", "chroma-server", "pgvector", "faiss", "qdrant-edge", "qdrant-double", "files",
        "jsonl", "folder", "weaviate", "pinecone",
    ],
)  # fmt: skip
def test_every_namespace_gets_a_collection(served: Places, store: str) -> None:
    """Equal ids in each, nothing added to a record; verified, and taken back to nothing."""
    places = served
    sent = tenants("", "acme", "globex")
    fill(places, at("sent"), sent)
    there = places.options(store, f"each_{store}".replace("-", "_"))
    if store == "pinecone":
        there["index"] += "-{namespace}"
    result = move(places, at("sent"), there, **TO)
    assert check(result, "ids").summary == "0 missing · 0 extra in 3 namespaces"
    assert result.target.namespaces == 3
    if store == "pinecone":
        there["index"] = there["index"].removesuffix("-{namespace}")
    for batch in sent:
        held = places.read(part(there, batch.namespace))
        uuids = store.startswith(("qdrant", "weaviate"))
        assert held.keys() == {uuid_for(each) if uuids else each for each in batch.ids}
        for row, each in enumerate(batch.ids):
            vector, document, metadata = held[uuid_for(each) if uuids else each]
            assert np.allclose(vector, batch.vector[row], atol=1e-6)
            assert document == batch.documents[row]
            assert metadata["title"] == batch.metadata[row]["title"]
            assert (
                metadata.keys() - {"original_id", "runner_integers"} == batch.metadata[row].keys()
            )
    plan = load_plan(places.folder / f"toy-{there['store']}.yaml")
    assert plan.run().run_id == result.run_id
    assert plan.verify().verdict is Verdict.PASSED
    undone = plan.rollback(confirmed=True)
    assert (undone.action, undone.removed) == ("drop", 3 * COUNT + 3)
    for batch in sent:
        with places.opened(part(there, batch.namespace)) as store_of_one:
            assert store_of_one.describe() is None


def test_the_dry_run_names_the_collections_and_makes_none(served: Places) -> None:
    fill(served, at("sent"), tenants("", "acme", "globex"))
    there = served.options("pgvector", "tried")
    plan = load_plan(served.plan(at("sent"), there, **TO))
    found = plan.dry_run()
    assert found.exit_code == 0
    assert '"tried", "tried_acme", "tried_globex"' in "".join(each.what for each in found.notes)
    assert found.steps[0].text.startswith("3 collections, one a namespace, each like table tried")
    assert plan.inspect().sides[1].about.state == "does not exist"
    for namespace in ("", "acme", "globex"):
        with served.opened(part(there, namespace)) as store:
            assert store.describe() is None


def test_the_namespace_goes_where_the_name_says(places: Places) -> None:
    fill(places, at("sent"), tenants("", "acme"))
    there = {"store": "files", "path": "{namespace}.docs.jsonl"}
    with pytest.raises(CapabilityError, match="a collection without a name"):
        load_plan(places.plan(at("sent"), there, **TO)).run()
    move(places, at("sent"), {"store": "files", "path": "out/{namespace}_docs.jsonl"}, **TO)
    names = sorted(each.name for each in (places.folder / "out").glob("*.jsonl"))
    assert names == ["acme_docs.jsonl", "docs.jsonl"]
    load_plan(places.folder / "toy-files.yaml").rollback(confirmed=True)
    assert not (places.folder / "out").exists()


@pytest.mark.parametrize(
    ("namespaces", "there", "problem"),
    [
        (("a/b",), {"store": "files", "path": "out.jsonl"}, "cannot be part of a file's name"),
        (("..",), {"store": "files", "path": "{namespace}/out.jsonl"}, "in a folder's name"),
        (("x" * 300,), {"store": "files", "path": "out.jsonl"}, "too long for a file's name"),
        (("a",), {"store": "chroma", "path": "db", "collection": "{namespace}"}, "3"),
        (("acme", "Acme"), {"store": "weaviate", "collection": "{namespace}Docs"}, "share one"),
        (("a" * 60,), {"store": "pgvector", "table": "docs_{namespace}"}, "63"),
    ],
    ids=["slash", "folder", "too long", "a name that Chroma refuses", "one name", "bytes"],
)
def test_a_namespace_that_cannot_name_a_collection_stops_the_run_before_it_begins(
    served: Places, namespaces: tuple[str, ...], there: dict[str, Any], problem: str
) -> None:
    fill(served, at("sent"), tenants(*namespaces))
    reach = served.options(there["store"], "x") if there["store"] != "files" else {}
    plan = load_plan(served.plan(at("sent"), {**reach, **there}, **TO))
    with pytest.raises(CapabilityError, match=problem):
        plan.run()
    assert plan.status().phase == "never run"


def test_a_collection_that_is_there_is_met_as_the_plan_says(served: Places) -> None:
    fill(served, at("sent"), tenants("", "acme"))
    there = served.options("pgvector", "met")
    mine = records(5, seed=9).with_(ids=[f"mine-{row}" for row in range(5)])
    served.fill(part(there, "acme"), mine)
    with pytest.raises(CapabilityError, match="met exists already, with 5 records"):
        load_plan(served.plan(at("sent"), there, **TO)).run()
    replacing = load_plan(served.plan(at("sent"), {**there, "if_exists": "replace"}, **TO))
    with pytest.raises(HazardError, match="replace-target"):
        replacing.run()
    assert served.read(part(there, "acme")).keys() == set(mine.ids)
    assert replacing.run(allow=["replace-target"]).verdict is Verdict.PASSED
    assert served.read(part(there, "acme")).keys() == set(tenants("", "acme")[1].ids)


def test_a_run_that_appended_takes_back_only_its_own(served: Places) -> None:
    """The collections that it had to make go wholly."""
    fill(served, at("sent"), tenants("", "acme"))
    there = served.options("chroma", "added")
    mine = records(5, seed=9).with_(ids=[f"mine-{row}" for row in range(5)])
    served.fill(part(there, "acme"), mine)
    plan = load_plan(served.plan(at("sent"), {**there, "if_exists": "append"}, **TO))
    assert plan.run().verdict is Verdict.PASSED
    assert len(served.read(part(there, "acme"))) == COUNT + 1 + 5
    assert len(served.read(there)) == COUNT
    assert plan.verify().verdict is Verdict.PASSED
    undone = plan.rollback(confirmed=True)
    assert undone.removed == 2 * COUNT + 1
    assert served.read(part(there, "acme")).keys() == set(mine.ids)
    with served.opened(there) as store:
        assert store.describe() is None


def test_records_of_others_keep_their_collections(served: Places) -> None:
    fill(served, at("sent"), tenants("acme", "globex"))
    there = served.options("pgvector", "shared")
    plan = load_plan(served.plan(at("sent"), there, **TO))
    assert plan.run().verdict is Verdict.PASSED
    with served.opened(part(there, "acme"), Access.WRITE) as store:
        store.write(records(1).with_(ids=["theirs"]))
    undone = plan.rollback(confirmed=True)
    assert (undone.action, undone.removed) == ("delete", 2 * COUNT + 1)
    assert served.read(part(there, "acme")).keys() == {"theirs"}


def test_a_collection_that_another_run_writes_to_is_left_alone(
    served: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(served, at("sent"), tenants("acme", "globex"))
    there = served.options("pgvector", "busy")
    acme = served.plan({**at("sent"), "namespaces": ["acme"]}, there, "one", **TO)
    other = served.plan(at("sent"), {**there, "if_exists": "append"}, "other", **TO)

    def fails(*_: object, **__: object) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("runner.stores.pgvector.PgvectorStore.write", fails)
        with pytest.raises(StoreError, match="the disk is full"):
            load_plan(acme).run()
    with pytest.raises(JournalError, match="of the plan one is writing to this target"):
        load_plan(other).run()


def test_more_collections_than_may_be_open_at_once(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divided, "_MOST_OPEN", 2)
    sent = tenants("", *"abcdefg")
    fill(places, at("sent"), sent)
    opened: list[int] = []
    make = divided.DividedTarget._opened

    def counted(self: divided.DividedTarget, namespace: str) -> Any:
        opened.append(len(self._open))
        return make(self, namespace)

    monkeypatch.setattr(divided.DividedTarget, "_opened", counted)
    result = move(places, at("sent"), places.options("chroma", "many"), workers=2, **TO)
    assert result.target.namespaces == 8
    assert max(opened) <= 2 + 2  # those that the writers are inside come on top


def test_a_namespace_that_comes_later_is_set_aside(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody planned a collection for it."""
    fill(places, at("sent"), tenants("acme"))
    late = records(3).with_(namespace="late")
    create = FilesStore.create

    def and_then(self: FilesStore, spec: Any) -> None:
        create(self, spec)
        with places.opened(at("sent"), Access.WRITE) as source:
            source.write(late)

    monkeypatch.setattr(FilesStore, "create", and_then)
    plan = load_plan(places.plan(at("sent"), places.options("jsonl", "there"), **TO))
    result = plan.run()
    assert result.verdict is Verdict.FAILED
    assert result.dead_letters == 3
    assert "3" in check(result, "dead letters").summary


def test_the_source_is_none_of_the_collections(places: Places) -> None:
    """Its records say that they are of `acme`, whose collection it would be."""
    fill(places, at("sent"), tenants("", "acme"))
    there = {"store": "files", "path": "docs_acme.parquet"}
    move(places, at("sent"), there, namespace_to={"field": "tenant"})
    target = {"store": "files", "path": "docs.parquet"}
    with pytest.raises(PlanError, match="the source is the same collection"):
        load_plan(places.plan(there, target, **TO)).run()


@pytest.mark.parametrize("made", [0, 1, 2])
def test_a_creation_that_broke_off_is_completed(
    served: Places, monkeypatch: pytest.MonkeyPatch, made: int
) -> None:
    fill(served, at("sent"), tenants("", "acme", "globex"))
    there = served.options("pgvector", f"broken_{made}")
    path = served.plan(at("sent"), there, **TO)
    left = iter([True] * made)
    create = divided.DividedTarget._spec_of

    def some(self: divided.DividedTarget, spec: Any, namespace: str) -> Any:
        if not next(left, False):
            raise StoreError("the disk is full")
        return create(self, spec, namespace)

    with monkeypatch.context() as patched:
        propose = divided.DividedTarget.propose
        proposed: list[Any] = []

        def seen(self: divided.DividedTarget, *arguments: Any) -> Any:
            found = propose(self, *arguments)
            patched.setattr(divided.DividedTarget, "_spec_of", some)
            proposed.append(found)
            return found

        patched.setattr(divided.DividedTarget, "propose", seen)
        with pytest.raises(StoreError, match="the disk is full"):
            load_plan(path).run()
        assert proposed
    undone = load_plan(path).rollback()
    assert undone.removed == 0
    result = load_plan(path).resume()
    assert result.verdict is Verdict.PASSED
    assert result.target.namespaces == 3
    assert load_plan(path).rollback(confirmed=True).action == "drop"


def test_a_run_that_breaks_off_goes_on(served: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Batch] = tenants("", "acme", "globex")
    fill(served, at("sent"), sent)
    there = served.options("chroma", "resumed")
    path = served.plan(at("sent"), there, batch_size=15, workers=1, **TO)
    write = divided.DividedTarget.write
    left = iter([True] * 5)

    def some(self: divided.DividedTarget, batch: Batch, *, fresh: bool = False) -> None:
        if not next(left, False):
            raise StoreError("the disk is full")
        write(self, batch, fresh=fresh)

    with monkeypatch.context() as patched:
        patched.setattr(divided.DividedTarget, "write", some)
        with pytest.raises(StoreError, match="the disk is full"):
            load_plan(path).run()
    with served.opened(at("sent"), Access.WRITE) as source:
        assert isinstance(source, NamespacedToy)
    result = load_plan(path).resume()
    assert (result.verdict, result.resumed) == (Verdict.PASSED, 1)
    for batch in sent:
        assert served.read(part(there, batch.namespace)).keys() == set(batch.ids)
