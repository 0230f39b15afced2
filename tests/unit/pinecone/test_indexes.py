"""What indexes can be: listed or not, billed, protected, marked, of other kinds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.errors import (
    PausedError,
    RunnerError,
    StoreError,
    TransientStoreError,
)
from runner.model import (
    Batch,
    Metric,
    Severity,
    VectorKind,
    VectorSpec,
)
from runner.stores.base import Access
from runner.stores.pinecone import PineconeStore
from runner.stores.pinecone_client import Meter
from tests.servers.pinecone_double import Index, State
from tests.unit.pinecone.places import DENSE, DIM, PODS, batch, made, read, spec, terms

# Lists of ids


def pods(state: State, records: Batch, opened: Callable[..., PineconeStore]) -> Index:
    """An index that cannot list, with *records*."""
    made(opened()).write(records)
    index = state.indexes["docs"]
    index.deployment = dict(PODS)
    return index


def test_an_index_that_cannot_list_says_what_it_needs(
    opened: Callable[..., PineconeStore], state: State
) -> None:
    pods(state, batch(5), opened)
    store = opened(Access.READ)
    assert store.describe() is not None
    with pytest.raises(StoreError, match="runs on pods, which cannot list their ids") as caught:
        read(store)
    assert "source.ids_from" in caught.value.hint
    (finding,) = opened().append_findings()
    assert "nobody could prove what arrived" in finding.what


def test_a_list_of_ids_stands_in_for_listing(
    opened: Callable[..., PineconeStore], state: State, tmp_path: Path
) -> None:
    """Twice, unknown, impossible, in any order, with either line end."""
    pods(state, batch(2500), opened)
    file = tmp_path / "ids.txt"
    lines = [f"doc-{row:05d}" for row in range(2400, 0, -1)]
    file.write_bytes("\r\n".join([*lines, "", "doc-00001", "unknown", "ü", "x" * 600]).encode())
    store = opened(Access.READ, ids_from=str(file))
    assert read(store) == sorted(lines)
    assert store.count() == 2400
    (finding,) = (each for each in store.findings() if each.key == "source.ids_from")
    assert finding.severity is Severity.WARNING
    assert "2,400 of them are there, and the index counts 2,500 records" in finding.what
    assert "complete is only as sure as that list" in finding.hint


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None])
def test_a_list_that_is_no_text_is_named(
    opened: Callable[..., PineconeStore], tmp_path: Path, content: bytes | None
) -> None:
    made(opened())
    file = tmp_path / "ids.bin"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StoreError, match="cannot be read as text") as caught:
        read(opened(Access.READ, ids_from=str(file)))
    assert "one id a line" in caught.value.hint


# Units


def test_no_request_goes_beyond_the_limit_whatever_is_under_way() -> None:
    """Ten at once that cost four each under a limit of twenty-one: five are sent."""
    meter = Meter(21, "target")
    inside, leave = threading.Barrier(6), threading.Event()
    refused: list[RunnerError] = []

    def ask() -> None:
        try:
            with meter.request(written=4):
                inside.wait(30)
                leave.wait(30)
        except PausedError as error:
            refused.append(error)

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for each in threads:
        each.start()
    inside.wait(30)
    for _ in range(5):
        ask()
    leave.set()
    for each in threads:
        each.join()
    assert (meter.written, len(refused)) == (20, 5)
    assert "20 read and write units are spent" in refused[0].what
    assert "target.max_units" in refused[0].hint


def test_what_failed_is_not_counted() -> None:
    meter = Meter(10, "source")
    for _ in range(3):
        with pytest.raises(TransientStoreError), meter.request(read=8):
            raise TransientStoreError("busy")
    with meter.request(read=8) as spending:
        spending.read = 2
    assert meter.read == 2


def test_a_run_stops_at_its_limit_of_units(
    opened: Callable[..., PineconeStore], state: State
) -> None:
    store = made(opened(max_units=40))

    def write_on() -> None:
        for seed in range(100):
            store.write(batch(50, seed=seed, ids=[f"{seed}-{row}" for row in range(50)]))

    with pytest.raises(PausedError) as caught:
        write_on()
    assert caught.value.exit_code == 75
    assert 20 < state.read_units + state.write_units <= 40


def test_units_of_an_upsert_are_those_of_its_bytes(
    opened: Callable[..., PineconeStore], state: State
) -> None:
    store = made(opened(), spec(dim=300))
    store.write(batch(500, dim=300))
    assert store._client.meter.written == pytest.approx(state.write_units, abs=len(state.upserts))
    assert store._client.meter.read == state.read_units


# Protection and tags


def test_an_index_is_protected_once_it_is_filled_and_goes_by_the_plan_that_protected_it(
    opened: Callable[..., PineconeStore], state: State
) -> None:
    wanted = spec(extra={"deletion_protection": "enabled", "tags": {"team": "search"}})
    store = made(opened(tags={"env": "test"}), wanted)
    index = state.indexes["docs"]
    assert index.protection == "disabled"  # a failed run has to be able to take it back
    assert index.tags == {"team": "search", "env": "test"}
    store.finish(store.propose(wanted, 0, 0).spec)
    assert index.protection == "enabled"
    with pytest.raises(StoreError, match="protected from deletion, and not by this plan"):
        store.drop()
    assert "docs" in state.indexes
    opened(deletion_protection="enabled").drop()
    assert state.indexes == {}


@pytest.mark.parametrize("mark", ["short", "long " * 100, "ü {} \n\0"])
def test_a_mark_is_tags_that_leave_those_of_others_alone(
    opened: Callable[..., PineconeStore], state: State, mark: str
) -> None:
    store = made(opened(tags={"env": "test"}))
    assert store.read_mark() is None
    store.write_mark("an older and longer one" * 10)
    store.write_mark(mark)
    assert opened(Access.READ).read_mark() == mark
    described = store.describe()
    assert described is not None
    assert described.extra["tags"] == {"env": "test"}
    store.write_mark(None)
    assert store.read_mark() is None
    assert state.indexes["docs"].tags == {"env": "test"}


# Other indexes


@pytest.mark.parametrize(
    "fields",
    [
        {"title": {"type": "string", "full_text_search": {}}},
        {"embedding": {"type": "dense_vector", "dimension": 4, "metric": "cosine"}},
        {"text": {"type": "string", "embed": {"model": "multilingual-e5-large"}}},
        {**DENSE, "genre": {"type": "string", "filterable": True}},
        {**DENSE, "year": {"type": "float", "filterable": True}},
        {"keywords": {"type": "sparse_vector"}},
    ],
)
def test_an_index_of_documents_is_refused_by_name(
    opened: Callable[..., PineconeStore], state: State, fields: dict[str, Any]
) -> None:
    state.add("docs", fields)
    with pytest.raises(StoreError, match="is an index of documents") as caught:
        opened(Access.READ).describe()
    assert (fields.keys() - DENSE.keys()).pop() in caught.value.what
    assert "not supported yet" in caught.value.hint


def test_fields_that_an_older_index_filters_by_make_it_no_index_of_documents(
    opened: Callable[..., PineconeStore], state: State
) -> None:
    state.add("docs", {**DENSE, "genre": {"filterable": True}})
    described = opened(Access.READ).describe()
    assert described is not None
    assert described.vectors == spec().vectors


@pytest.mark.parametrize(
    ("model", "dimension", "vectors"),
    [
        ("multilingual-e5-large", DIM, {"": VectorSpec(DIM, Metric.DOT)}),
        ("sparse-english", None, {"sparse": VectorSpec(0, Metric.DOT, VectorKind.SPARSE)}),
    ],
)
def test_an_index_that_embeds_gives_its_vectors_and_says_that_the_model_stays(
    opened: Callable[..., PineconeStore],
    state: State,
    model: str,
    dimension: int | None,
    vectors: dict[str, VectorSpec],
) -> None:
    field: dict[str, Any] = {"type": "semantic_text", "model": model, "metric": "dotproduct"}
    state.add("docs", {"chunk": field | ({"dimension": dimension} if dimension else {})})
    writer = opened(document_field="chunk")
    sent = batch(3) if dimension else batch(
        3, vectors={}, sparse={"sparse": [terms((row, 1.0)) for row in range(3)]}
    )  # fmt: skip
    writer.write(sent)
    store = opened(Access.READ)
    described = store.describe()
    assert described is not None
    assert described.vectors == vectors
    assert described.extra["embedding"] == {"field": "chunk", "model": model}
    (finding,) = store.findings()
    assert f"embeds the field 'chunk' with the model '{model}'" in finding.what
    assert "document_field: chunk" in finding.hint
    (told,) = opened(Access.READ, document_field="chunk").findings()
    assert "document_field" not in told.hint
    assert opened(Access.READ, document_field="chunk").fetch(sent.ids).documents == sent.documents


def test_settings_of_one_index_are_those_of_the_next(
    opened: Callable[..., PineconeStore], state: State
) -> None:
    place = {"deployment_type": "managed", "cloud": "gcp", "region": "us-central1"}
    state.add("old", DENSE, deployment=place, tags={"team": "search"})
    state.indexes["old"].protection = "enabled"
    found = opened(Access.READ, index="old").describe()
    assert found is not None
    target = opened(index="new", region="europe-west4")
    target.create(target.propose(found, 0, 0).spec)
    target.finish(target.propose(found, 0, 0).spec)
    new = state.indexes["new"]
    assert new.deployment == {**place, "region": "europe-west4"}
    assert (new.tags, new.protection, new.fields) == ({"team": "search"}, "enabled", DENSE)
