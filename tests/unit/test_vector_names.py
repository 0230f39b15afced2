"""Which vector of the target takes which of the source."""

from __future__ import annotations

from runner.model import CollectionSpec, VectorKind, VectorSpec
from runner.steps.preflight import vector_names

SPARSE = VectorSpec(0, kind=VectorKind.SPARSE)
MULTI = VectorSpec(4, kind=VectorKind.MULTI)
DENSE = VectorSpec(4)


def spec(**vectors):
    return CollectionSpec(
        "c", {name.removeprefix("unnamed"): each for name, each in vectors.items()}
    )


def test_names_stay_where_the_target_has_names():
    source = spec(text=DENSE, image=DENSE, words=SPARSE)
    assert vector_names(source, None, named=True) == {
        "text": "text",
        "image": "image",
        "words": "words",
    }
    assert vector_names(spec(text=DENSE, words=SPARSE), None, named=True) == {
        "text": "text",
        "words": "words",
    }
    assert vector_names(spec(words=SPARSE), None, named=True) == {"words": "words"}


def test_a_dense_vector_that_is_the_only_vector_has_no_name():
    assert vector_names(spec(text=DENSE), None, named=True) == {"text": ""}
    assert vector_names(spec(unnamed=DENSE), None, named=True) == {"": ""}


def test_the_only_one_of_its_kind_has_a_place_of_its_own_where_there_are_no_names():
    source = spec(text=DENSE, words=SPARSE, tokens=MULTI)
    assert vector_names(source, None, named=False) == {
        "text": "",
        "words": "sparse",
        "tokens": "multi",
    }


def test_the_only_one_takes_the_name_of_the_only_one_that_is_there():
    there = spec(embedding=DENSE, bm25=SPARSE)
    found = vector_names(spec(text=DENSE, words=SPARSE), there, named=True)
    assert found == {"text": "embedding", "words": "bm25"}
    assert vector_names(spec(a=DENSE, b=DENSE), there, named=True) == {"a": "a", "b": "b"}


def test_a_message_calls_a_vector_by_its_name_and_its_kind_once():
    assert spec(text=DENSE, words=SPARSE).listed_vectors == "text (dense), words (sparse)"
    assert spec(unnamed=DENSE, sparse=SPARSE, multi=MULTI).listed_vectors == "dense, sparse, multi"
