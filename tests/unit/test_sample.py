"""The sample in plans/sample: what the demo, the README and tests build on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runner.stores.base import Access, Location
from runner.stores.files import FilesStore
from runner.testing import read_all

SAMPLE = Path(__file__).resolve().parents[2] / "plans" / "sample"
MAX_BYTES = 4_000_000


def vectors_of(table: pa.Table) -> npt.NDArray[np.float32]:
    flat = table["vector"].combine_chunks().flatten().to_numpy()
    return flat.reshape(table.num_rows, -1)


@pytest.fixture(scope="module")
def documents() -> pa.Table:
    return pq.read_table(SAMPLE / "documents.parquet")


@pytest.fixture(scope="module")
def questions() -> pa.Table:
    return pq.read_table(SAMPLE / "questions.parquet")


def test_the_files_stay_small() -> None:
    """They are in everybody's clone."""
    assert sum(file.stat().st_size for file in SAMPLE.glob("*.parquet")) < MAX_BYTES


def test_the_documents_are_1500_of_384_dimensions(documents: pa.Table) -> None:
    assert documents.schema.names == ["id", "document", "metadata", "vector"]
    assert vectors_of(documents).shape == (1500, 384)
    assert len(set(documents["id"].to_pylist())) == 1500
    assert all(len(text) <= 1200 for text in documents["document"].to_pylist())


def test_the_questions_are_60_of_384_dimensions(questions: pa.Table) -> None:
    assert questions.schema.names == ["id", "text", "vector"]
    assert vectors_of(questions).shape == (60, 384)
    assert len(set(questions["text"].to_pylist())) == 60


def test_all_vectors_have_length_1(documents: pa.Table, questions: pa.Table) -> None:
    for table in (documents, questions):
        lengths = np.linalg.norm(vectors_of(table).astype(np.float64), axis=1)
        assert np.abs(lengths - 1).max() < 1e-6


def test_no_text_names_the_machine_it_was_made_on(documents: pa.Table) -> None:
    texts = documents["document"].to_pylist() + documents["metadata"].to_pylist()
    assert not [text for text in texts if "/root/" in text or "/home/" in text or " at 0x" in text]


def test_metadata_has_several_types(documents: pa.Table) -> None:
    objects = [json.loads(text) for text in documents["metadata"].to_pylist()]
    kinds: dict[str, set[str]] = {}
    for each in objects:
        for name, value in each.items():
            kinds.setdefault(name, set()).add(type(value).__name__)
    assert kinds == {
        "module": {"str"},
        "kind": {"str"},
        "name": {"str"},
        "lines": {"int"},
        "deprecated": {"bool"},
        "parameters": {"list"},
        "file": {"str"},
        "line": {"str"},
    }


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("wrap long text to a certain width", "textwrap.wrap"),
        ("get the n smallest items", "heapq.nsmallest"),
        ("make a deep copy of an object", "copy.deepcopy"),
        ("group consecutive items of an iterable", "itertools.groupby"),
        ("ask the user for a password without echo", "getpass.getpass"),
    ],
)
def test_a_question_finds_its_answer(
    documents: pa.Table, questions: pa.Table, question: str, expected: str
) -> None:
    """The embeddings mean something: each answer is among the three nearest."""
    row = questions["text"].to_pylist().index(question)
    scores = vectors_of(documents) @ vectors_of(questions)[row]
    ids = documents["id"].to_pylist()
    assert expected in [ids[each] for each in np.argsort(-scores)[:3]]


def test_the_files_store_reads_the_documents_as_they_are(
    documents: pa.Table, tmp_path: Path
) -> None:
    location = Location("files", {"path": str(SAMPLE / "documents.parquet")})
    with FilesStore(location, Access.READ, tmp_path) as store:
        read = read_all(store)
    assert read.ids == documents["id"].to_pylist()
    assert read.documents == documents["document"].to_pylist()
    assert np.array_equal(read.vector, vectors_of(documents))
    assert read.metadata.objects() == [
        json.loads(text) for text in documents["metadata"].to_pylist()
    ]
