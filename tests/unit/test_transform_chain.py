"""What becomes of records that a transform changes, sets aside or cannot handle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import TransformError
from runner.model import Batch, Metadata, SparseVector
from runner.plan.model import OnError, TransformStep
from runner.transform import FieldEffect
from runner.transform_loader import Chain, DeadLetter, load_chain


def batch(n: int = 3, **columns: Any) -> Batch:
    sparse = SparseVector(np.array([1], dtype=np.uint32), np.array([1.0], dtype=np.float32))
    given_columns: dict[str, Any] = {
        "ids": list(range(n)),
        "vectors": {"": np.arange(n * 2, dtype=np.float32).reshape(n, 2)},
        "documents": [f"text {row}" for row in range(n)],
        "metadata": Metadata(objects=[{"year": str(2000 + row), "tags": []} for row in range(n)]),
        "namespace": "ns",
        "sparse": {"words": [sparse] * n},
    }
    return Batch(**{**given_columns, **columns})


def one_bad(n: int = 3, bad: int = 1) -> Batch:
    objects = [{"year": str(2000 + row)} for row in range(n)]
    objects[bad]["year"] = "n.d. 4711"
    return batch(n, metadata=Metadata(objects=objects))


def cast(on_error: OnError) -> Chain:
    step = TransformStep("cast", {"year": "int"}, on_error, "transforms[0]")
    return load_chain([step], plan_dir=Path("/"), root=Path("/"))


def python(folder: Path, body: str, on_error: OnError = OnError.FAIL) -> Chain:
    text = "import numpy as np\nfrom runner.transform import *\n\ndef f(record):\n"
    lines = body.strip().splitlines()
    (folder / "code.py").write_text(text + "".join(f"    {line}\n" for line in lines))
    step = TransformStep("python", "code.py:f", on_error, "transforms[0]")
    return load_chain([step], plan_dir=folder, root=folder)


def test_an_empty_chain_hands_the_batch_through_untouched() -> None:
    texts = Metadata(texts=[b'{"a":1}'] * 3)
    before = batch(metadata=texts)
    applied = Chain().apply(before)
    assert Chain().is_empty
    assert applied.batch is before
    assert applied.dead == ()
    assert not texts.has_objects


def test_fail_names_the_record_the_step_and_the_reason_but_not_the_value() -> None:
    with pytest.raises(TransformError) as caught:
        cast(OnError.FAIL).apply(one_bad())
    assert caught.value.what == (
        "transforms[0].cast: record 1: metadata.year is text that is not a whole number"
    )
    assert "4711" not in str(caught.value)


def test_dead_letter_sets_the_record_aside() -> None:
    applied = cast(OnError.DEAD_LETTER).apply(one_bad())
    assert applied.batch.ids == [0, 2]
    assert applied.batch.documents == ["text 0", "text 2"]
    assert applied.batch.vector.tolist() == [[0, 1], [4, 5]]
    assert len(applied.batch.sparse["words"]) == 2
    assert applied.batch.metadata.objects() == [{"year": 2000}, {"year": 2002}]
    reason = "metadata.year is text that is not a whole number"
    assert applied.dead == (DeadLetter(1, "ns", "transforms[0]", reason, '"n.d. 4711"'),)


def test_keep_leaves_the_record_as_it_was() -> None:
    applied = cast(OnError.KEEP).apply(one_bad())
    assert [each["year"] for each in applied.batch.metadata] == [2000, "n.d. 4711", 2002]


def test_set_null_makes_the_field_null() -> None:
    before = one_bad()
    applied = cast(OnError.SET_NULL).apply(before)
    assert [each["year"] for each in applied.batch.metadata] == [2000, None, 2002]
    assert before.metadata[1] == {"year": "n.d. 4711"}


def test_counts_and_values_are_kept_apart() -> None:
    applied = cast(OnError.DEAD_LETTER).apply(one_bad(10, bad=4))
    stats = applied.stats["transforms[0]"]
    assert (stats.seen, stats.changed, stats.failed) == (10, 9, 1)
    assert stats.failed_fields == {"year": 1}
    [dead] = applied.dead
    assert (dead.id, dead.value) == (4, '"n.d. 4711"')
    assert "4711" not in repr(applied.dead) + repr(stats)


def test_values_are_cut_short() -> None:
    objects = [{"year": "x" * 1000}]
    [dead] = cast(OnError.DEAD_LETTER).apply(batch(1, metadata=Metadata(objects=objects))).dead
    assert len(dead.value) < 100


@pytest.mark.parametrize(("before", "after"), [(1, 1.0), (True, 1.0)])
def test_a_change_of_type_alone_counts_as_a_change(before: Any, after: Any) -> None:
    step = TransformStep("cast", {"x": "float"}, OnError.FAIL, "transforms[0]")
    chain = load_chain([step], plan_dir=Path("/"), root=Path("/"))
    applied = chain.apply(batch(1, metadata=Metadata(objects=[{"x": before}])))
    assert applied.stats["transforms[0]"].changed == 1
    assert type(applied.batch.metadata[0]["x"]) is type(after)


def test_what_several_steps_do_to_a_field_is_told_under_its_first_name() -> None:
    words: list[tuple[str, Any]] = [
        ("rename", {"src": "source", "a": "b", "b": "a"}),
        ("cast", {"source": "int", "a": "str"}),
        ("template", {"url": "x"}),
        ("rename", {"url": "link"}),
    ]
    steps = [
        TransformStep(name, args, OnError.FAIL, f"transforms[{at}]")
        for at, (name, args) in enumerate(words)
    ]
    assert load_chain(steps, plan_dir=Path("/"), root=Path("/")).effects == (
        FieldEffect("src", "source", "renamed, cast to int"),
        FieldEffect("a", "b", "renamed"),
        FieldEffect("b", "a", "renamed, cast to str"),
        FieldEffect("url", "link", "from a template, renamed"),
    )


def test_a_python_transform_changes_all_of_a_record(tmp_path: Path) -> None:
    before = batch()
    body = """
record.document = record.document.upper()
record.metadata["tags"].append(record.namespace)
record.vectors[""] = record.vectors[""] * 2
return record
"""
    applied = python(tmp_path, body).apply(before)
    assert applied.batch.documents == ["TEXT 0", "TEXT 1", "TEXT 2"]
    assert applied.batch.metadata[2] == {"year": "2002", "tags": ["ns"]}
    assert applied.batch.vector.tolist() == [[0, 2], [4, 6], [8, 10]]
    assert applied.stats["transforms[0]"].changed == 3
    assert before.vector.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert before.metadata[2]["tags"] == []
    assert before.documents[0] == "text 0"


def test_a_python_transform_that_returns_none_sets_the_record_aside(tmp_path: Path) -> None:
    applied = python(tmp_path, "return None if record.id == 1 else record").apply(batch())
    assert applied.batch.ids == [0, 2]
    assert applied.dead == (DeadLetter(1, "ns", "transforms[0]", "set aside by the transform"),)
    assert applied.stats["transforms[0]"].changed == 0


def test_a_vector_that_is_taken_away_is_absent(tmp_path: Path) -> None:
    body = "if record.id == 1: del record.vectors['']\nreturn record"
    found = python(tmp_path, body).apply(batch()).batch
    assert found.present[""].tolist() == [True, False, True]
    assert found.vector[1].tolist() == [0, 0]


def test_absent_vectors_are_not_handed_out(tmp_path: Path) -> None:
    before = batch(present={"": np.array([True, False, True])})
    body = "record.metadata = {'n': len(record.vectors)}\nreturn record"
    found = python(tmp_path, body).apply(before).batch
    assert [each["n"] for each in found.metadata] == [1, 0, 1]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("record.metadata['x'] = float('nan')", "metadata.x is NaN or infinity"),
        ("record.metadata['x'] = [1, {'y': float('inf')}]", "metadata.x is NaN or infinity"),
        ("import datetime; record.metadata['x'] = datetime.date.today()", "a datetime.date"),
        ("record.metadata['x'] = np.float64(1)", "a numpy.float64"),
        ("record.metadata['x'] = (1, 2)", "a tuple"),
        ("record.metadata['x'] = '\\ud800'", "surrogate"),
        ("record.metadata[1] = 'x'", "has a key that is a whole number"),
        ("record.metadata['x'] = record.metadata", "nests deeper"),
        ("record.metadata = None", "the metadata became null"),
        ("record.document = b'x'", "the document became a bytes"),
        ("record.document = '\\udfff'", "the document has half a surrogate pair"),
        ("record.id = 'other'", "use `ids: {from: field}`"),
        ("record.id = float(record.id)", "use `ids: {from: field}`"),
        ("record.namespace = 'other'", "changed the namespace"),
        ("record.vectors[''] = [1.0, 2.0, 3.0]", "has 3 components; expected 2"),
        ("record.vectors[''] = [1.0, float('nan')]", "NaN or infinity"),
        ("record.vectors[''] = [1e300, 0.0]", "NaN or infinity"),
        ("record.vectors[''] = ['1', '2']", "not made of numbers"),
        ("record.vectors[''] = [[1.0], [1.0, 2.0]]", "the vector became a list"),
        ("record.vectors[''][0] = 9", "failed with ValueError in line 5 of code.py"),
        ("record.vectors['new'] = [1.0, 2.0]", "no vector 'new'"),
        ("record = 'x'", "returned text; expected a Record or None"),
        ("int(record.metadata['year'] + ' secret')", "failed with ValueError in line 5 of code.py"),
        ("raise SystemExit(0)", "failed with SystemExit"),
        ("raise TransformFieldError('year', 'is odd')", "metadata.year is odd"),
    ],
)
def test_what_a_python_transform_must_not_do_fails_clearly(
    tmp_path: Path, body: str, reason: str
) -> None:
    with pytest.raises(TransformError) as caught:
        python(tmp_path, f"{body}\nreturn record").apply(batch())
    assert caught.value.what.startswith("transforms[0].python: record 0: ")
    assert reason in caught.value.what
    assert "secret" not in str(caught.value)
    kept = python(tmp_path, f"{body}\nreturn record", OnError.KEEP).apply(batch())
    assert kept.batch.metadata == batch().metadata
    assert kept.batch.documents == batch().documents
    assert kept.batch.vector.tolist() == batch().vector.tolist()
    assert kept.stats["transforms[0]"].failed == 3


def test_set_null_of_a_python_transform_needs_to_know_the_field(tmp_path: Path) -> None:
    known = "raise TransformFieldError('year', 'is odd')"
    found = python(tmp_path, known, OnError.SET_NULL).apply(batch()).batch
    assert found.metadata[0] == {"year": None, "tags": []}
    with pytest.raises(TransformError, match="TransformFieldError"):
        python(tmp_path, "raise KeyError('year')", OnError.SET_NULL).apply(batch())


def test_a_transform_of_batches_that_breaks_is_blamed_on_the_record(tmp_path: Path) -> None:
    (tmp_path / "transforms").mkdir()
    (tmp_path / "transforms" / "mine.py").write_text(
        "from runner.transform import *\n"
        "@transform('reciprocal')\n"
        "def reciprocal(field: str) -> MetadataTransform:\n"
        "    def apply(rows):\n"
        "        for metadata in rows.metadata:\n"
        "            metadata[field] = 1 / metadata[field]\n"
        "        return []\n"
        "    return MetadataTransform(apply)\n"
    )
    step = TransformStep("reciprocal", "x", OnError.DEAD_LETTER, "transforms[0]")
    chain = load_chain([step], plan_dir=tmp_path, root=tmp_path)
    applied = chain.apply(batch(metadata=Metadata(objects=[{"x": 2}, {"x": 0}, {"x": 4}])))
    assert applied.batch.metadata.objects() == [{"x": 0.5}, {"x": 0.25}]
    assert [(each.id, each.reason) for each in applied.dead] == [
        (1, "failed with ZeroDivisionError in line 6 of mine.py")
    ]


def test_later_steps_do_not_see_dead_letters() -> None:
    steps = [
        TransformStep("cast", {"year": "int"}, OnError.DEAD_LETTER, "transforms[0]"),
        TransformStep("drop", ["year"], OnError.FAIL, "transforms[1]"),
    ]
    applied = load_chain(steps, plan_dir=Path("/"), root=Path("/")).apply(one_bad())
    assert applied.stats["transforms[1]"].seen == 2
    assert applied.batch.metadata.objects() == [{}, {}]


def test_an_empty_batch_goes_through() -> None:
    applied = cast(OnError.FAIL).apply(batch(0))
    assert len(applied.batch) == 0


@given(st.lists(st.sampled_from(["1", "x", None]), max_size=8), st.sampled_from(OnError))
def test_every_record_is_accounted_for(years: list[str | None], policy: OnError) -> None:
    before = batch(len(years), metadata=Metadata(objects=[{"year": each} for each in years]))
    if policy is OnError.FAIL and "x" in years:
        with pytest.raises(TransformError):
            cast(policy).apply(before)
        return
    applied = cast(policy).apply(before)
    assert sorted([*applied.batch.ids, *(each.id for each in applied.dead)]) == before.ids
    assert applied.stats["transforms[0]"].failed == years.count("x")
