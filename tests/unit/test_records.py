"""Records of a Python program become a file that says exactly what they said, or none at all."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from runner.errors import CapabilityError, PlanError, RunnerError, StoreError
from runner.model import Batch, Metadata, SparseVector
from runner.records import write_records
from runner.stores import open_store
from runner.stores.base import Access, Connection, Location
from runner.stores.files import FilesStore
from runner.testing import read_all

VECTORS = np.arange(12, dtype=np.float32).reshape(3, 4)


def stored(path: Path) -> FilesStore:
    location = Location("files", {"path": str(path)}, Connection(), "source")
    return FilesStore(location, Access.READ, path.parent)


def rows() -> list[dict[str, Any]]:
    return [
        {"id": "a", "vector": VECTORS[0], "document": "one", "metadata": {"n": 1, "gone": None}},
        {"id": "b", "vector": VECTORS[1].tolist(), "tags": ["x", "y"], "deep": {"null": None}},
        {"id": "c", "vector": tuple(VECTORS[2].tolist()), "document": None, "metadata": None},
    ]


def test_mappings_arrive_with_everything_they_hold(tmp_path: Path) -> None:
    assert write_records(tmp_path / "new" / "r.parquet", rows(), metric="l2") == 3
    store = stored(tmp_path / "new" / "r.parquet")
    spec = store.describe()
    assert spec is not None
    assert (spec.vector.dim, spec.vector.metric, spec.id_kind) == (4, "l2", "string")
    found = read_all(store)
    assert found.ids == ["a", "b", "c"]
    assert np.array_equal(found.vector, VECTORS)
    assert found.documents == ["one", None, None]
    assert found.metadata.objects() == [
        {"n": 1, "gone": None},
        {"tags": ["x", "y"], "deep": {"null": None}},
        {},
    ]


def table() -> pa.Table:
    return pa.table(
        {
            "key": pa.array([1, 2, 3], pa.int64()),
            "emb": pa.FixedSizeListArray.from_arrays(VECTORS.reshape(-1), 4),
            "body": pa.array(["one", None, "three"], pa.string_view()),
            "day": pa.array([date(2026, 1, 2), None, date(2026, 1, 3)]),
            "score": pa.array([0.5, None, 1.5], from_pandas=True),
        }
    )


NAMES = {"id": "key", "vector": "emb", "document": "body"}


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(table, id="table"),
        pytest.param(lambda: table().to_reader(max_chunksize=2), id="stream"),
        pytest.param(lambda: iter([table()[:2], table()[2:]]), id="several tables"),
        pytest.param(lambda: table().to_batches(max_chunksize=1), id="record batches"),
    ],
)
def test_whatever_speaks_arrow_is_a_table(tmp_path: Path, given: Any) -> None:
    assert write_records(tmp_path / "r.parquet", given(), columns=NAMES) == 3
    found = read_all(stored(tmp_path / "r.parquet"))
    assert found.ids == [1, 2, 3]
    assert np.array_equal(found.vector, VECTORS)
    assert found.documents == ["one", None, "three"]
    assert found.metadata.objects() == [
        {"day": "2026-01-02", "score": 0.5}, {}, {"day": "2026-01-03", "score": 1.5},
    ]  # fmt: skip


class Frame:
    """A DataFrame as far as Arrow sees it: no table of pyarrow's, only the protocol."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return table().__arrow_c_stream__(requested_schema)


def test_a_dataframe_needs_the_protocol_only(tmp_path: Path) -> None:
    assert write_records(tmp_path / "r.parquet", Frame(), columns=NAMES) == 3
    assert read_all(stored(tmp_path / "r.parquet")).ids == [1, 2, 3]


def batch(ids: list[int | str], *, name: str = "") -> Batch:
    vectors = np.full((len(ids), 4), 0.5, np.float32)
    return Batch(ids, {name: vectors}, [None] * len(ids), Metadata.of([{"n": 1}] * len(ids)))


def test_batches_are_taken_one_by_one(tmp_path: Path) -> None:
    """An iterator that cannot be read twice is enough, and need not fit into memory."""
    given: list[weakref.ref[Batch]] = []

    def stream() -> Iterator[Batch]:
        for part in range(30):
            made = batch([f"{part}-{row}" for row in range(100)], name="text")
            given.append(weakref.ref(made))
            yield made
            del made
            assert sum(each() is not None for each in given) <= 2

    assert write_records(tmp_path / "r.parquet", stream()) == 3000
    assert stored(tmp_path / "r.parquet").count() == 3000


@pytest.mark.parametrize("ids", [["a", "b", 3], [3, "a"], [2**70, 1], [1, 2**70], [1, "1"]])
def test_ids_of_several_kinds_stay_what_they_are(tmp_path: Path, ids: list[int | str]) -> None:
    """Also where the first ones do not show it."""
    write_records(tmp_path / "r.parquet", [batch([each]) for each in ids])
    assert read_all(stored(tmp_path / "r.parquet")).ids == ids
    assert [each.name for each in tmp_path.iterdir()] == ["r.parquet"]


def test_a_record_without_a_vector_says_so_by_none(tmp_path: Path) -> None:
    given = [*rows(), {"id": "d", "vector": None}]
    write_records(tmp_path / "r.parquet", given)
    found = read_all(stored(tmp_path / "r.parquet"))
    assert found.present[""].tolist() == [True, True, True, False]
    write_records(
        tmp_path / "s.parquet", [batch(["a"]), Batch(["b"], {}, [None], Metadata.of([{}]))]
    )
    assert read_all(stored(tmp_path / "s.parquet")).present[""].tolist() == [True, False]


def test_python_values_become_those_of_json(tmp_path: Path) -> None:
    given = {
        "id": np.int64(7), "vector": [1, 2], "at": datetime(2026, 1, 2, tzinfo=UTC),
        "count": np.int32(3), "list": np.array([1, 2]), "pair": (1, "x"),
    }  # fmt: skip
    write_records(tmp_path / "r.parquet", [given])
    found = read_all(stored(tmp_path / "r.parquet"))
    assert found.ids == [7]
    assert found.metadata.objects() == [
        {"at": "2026-01-02T00:00:00+00:00", "count": 3, "list": [1, 2], "pair": [1, "x"]}
    ]


def test_nothing_is_a_file_of_no_records(tmp_path: Path) -> None:
    (tmp_path / ".r.parquet.tmp").write_bytes(b"what a killed process left")
    assert write_records(tmp_path / "r.parquet", []) == 0
    assert stored(tmp_path / "r.parquet").count() == 0


def changed(**keys: Any) -> list[dict[str, Any]]:
    given = rows()
    given[1] |= keys
    return [{key: value for key, value in row.items() if value is not ...} for row in given]


def nan(values: Any) -> Any:
    return np.where(np.arange(len(values)) == 1, np.nan, values).astype(np.float32)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (changed(id=...), "the record at position 1 has no 'id'; expected text or a whole number"),
        (changed(id=1.5), "the record at position 1 has an id of float"),
        (changed(id=True), "the record at position 1 has an id of bool"),
        (changed(id="a"), "these ids occur more than once: \"a\""),
        (changed(vector=...), "the record 'b' has no 'vector'"),
        (changed(vector=[1.0, 2.0]), "the record 'b': vector has 2 components, expected 4"),
        (changed(vector=nan(VECTORS[1])), "the record 'b': vector holds NaN or infinity"),
        (changed(vector=[1e39, 0, 0, 0]), "the record 'b': vector holds NaN or infinity"),
        (changed(vector="text"), "the record 'b': 'vector' is not a list of numbers"),
        (changed(vector=[[1.0], [2.0]]), "the record 'b': 'vector' is not a list of numbers"),
        (changed(document=7), "the record 'b': 'document' is int, not text"),
        (changed(metadata=[1]), "the record 'b': 'metadata' is list, not an object"),
        (changed(metadata={"tags": 1}), "the record 'b': 'tags' is both a column and a key"),
        (changed(score=float("nan")), "the record 'b': metadata.score: NaN or infinity"),
        (changed(thing={1, 2}), "the record 'b': metadata.thing: not JSON"),
        (changed(thing={"x": {3: 4}}), "the record 'b': the metadata key 3 is not text"),
        ([*rows(), "d"], "records: found str after mappings"),
        (table(), "there is no column 'id' for the id; found key, emb, body, day, score"),
        (table().rename_columns(["id", "x", "y", "z", "w"]).drop(["x"]),
         "there is no column 'vector' for the vector; found id, y, z, w"),
        ([batch(["a"]), batch(["b", "a"])], 'these ids occur more than once: "a"'),
        ([batch(["a"]), Batch(["b"], {"": np.ones((1, 3), np.float32)}, [None], Metadata.of([{}]))],
         "the record 'b': vector has 3 components, expected 4"),
        ([Batch(["a"], {"": np.full((1, 4), np.inf, np.float32)}, [None], Metadata.of([{}]))],
         "the record 'a': vector holds NaN or infinity"),
        ([Batch(["a"], {}, [None], Metadata.of([{}]))], "none of the first 1 records has a vector"),
        ({"id": "a"}, "records: found dict; expected a table"),
        ("records.csv", "records: found str; expected a table"),
        (["a", "b"], "records: found str after 0 records; expected a table"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_and_nothing_is_left_behind(
    tmp_path: Path, given: Any, words: str
) -> None:
    write_records(tmp_path / "r.parquet", rows())
    before = (tmp_path / "r.parquet").read_bytes()
    with pytest.raises((StoreError, PlanError)) as caught:
        write_records(tmp_path / "r.parquet", given)
    assert words in str(caught.value)
    assert (tmp_path / "r.parquet").read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["r.parquet"]


def test_batches_may_hold_several_vectors_and_the_first_says_which(tmp_path: Path) -> None:
    words = SparseVector(np.array([3, 9], np.uint32), np.array([0.5, 2], np.float32))
    two = {"a": np.ones((1, 2), np.float32), "b": np.ones((1, 3), np.float32)}
    first = Batch(["a"], two, [None], Metadata.of([{}]), sparse={"s": [words]})
    second = Batch(["b"], {"b": np.zeros((1, 3), np.float32)}, [None], Metadata.of([{}]))
    path = tmp_path / "r.parquet"
    assert write_records(path, [first, second]) == 2
    with open_store(Location("files", {"path": str(path)}), Access.READ, tmp_path) as store:
        spec, found = store.describe(), store.fetch(["b", "a"])
    assert spec is not None
    assert {name: (each.kind, each.dim) for name, each in spec.vectors.items()} == {
        "a": ("dense", 2),
        "b": ("dense", 3),
        "s": ("sparse", 0),
    }
    assert found.present["a"].tolist() == [False, True]
    assert found.vectors["b"].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert found.sparse["s"] == [None, words]
    with pytest.raises(CapabilityError, match="the vector 'a', which the first one had not"):
        write_records(path, [second, first])


@pytest.mark.parametrize(
    ("path", "more", "words"),
    [
        ("r.csv", {}, "expected a file that ends in .parquet or .pq"),
        ("r.parquet", {"metric": "euclid"}, "metric: 'euclid' is not one of cosine, dot, l2"),
        ("r.parquet", {"columns": {"key": "id"}}, "columns: expected some of id, vector"),
    ],
)
def test_a_wrong_call_says_what_is_expected(
    tmp_path: Path, path: str, more: dict[str, Any], words: str
) -> None:
    with pytest.raises(PlanError) as caught:
        write_records(tmp_path / path, rows(), **more)
    assert words in str(caught.value)


def test_a_folder_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunnerError, match="cannot be made"):
        write_records(tmp_path / "file" / "r.parquet", rows())
