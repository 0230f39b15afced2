"""Each bundled transform: what it does, what it refuses, what plans may write."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import PlanError, TransformError
from runner.model import Batch, Metadata
from runner.plan.model import OnError, TransformStep
from runner.transform_loader import Chain, lint_step, load_chain

HERE = Path(__file__).parent


def step(name: str, args: Any, on_error: OnError = OnError.FAIL, at: int = 0) -> TransformStep:
    return TransformStep(name, args, on_error, f"transforms[{at}]")


def chain(*steps: TransformStep) -> Chain:
    return load_chain(steps, plan_dir=HERE, root=HERE)


def batch(*metadata: dict[str, Any]) -> Batch:
    n = len(metadata)
    return Batch(
        ids=[f"id{row}" for row in range(n)],
        vectors={"": np.zeros((n, 2), dtype=np.float32)},
        documents=["A text"] * n,
        metadata=Metadata(objects=list(metadata)),
        namespace="ns",
    )


def after(name: str, args: Any, metadata: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = chain(step(name, args)).apply(batch(metadata)).batch.metadata[0]
    return found


@pytest.mark.parametrize(
    ("name", "args", "before", "expected"),
    [
        ("rename", {"src": "source"}, {"src": 1, "x": 2}, {"source": 1, "x": 2}),
        ("rename", {"a": "b", "b": "a"}, {"a": 1, "b": 2}, {"a": 2, "b": 1}),
        ("rename", {"a": "b", "b": "c"}, {"a": 1, "b": 2}, {"b": 1, "c": 2}),
        ("rename", {"a": "a"}, {"a": 1}, {"a": 1}),
        ("keep", ["title", "lang_*"], {"title": 1, "lang_x": 2, "y": 3}, {"title": 1, "lang_x": 2}),
        ("drop", ["internal_*"], {"internal_a": 1, "xinternal_": 2}, {"xinternal_": 2}),
        ("drop", ["a.b", "c[0]"], {"a.b": 1, "aXb": 2, "c[0]": 3, "c0": 4}, {"aXb": 2, "c0": 4}),
        ("drop", ["*"], {"a\nb": 1}, {}),
        ("default", {"lang": "en"}, {}, {"lang": "en"}),
        ("default", {"lang": "en"}, {"lang": None}, {"lang": "en"}),
        ("default", {"lang": "en"}, {"lang": ""}, {"lang": ""}),
        ("cast", {"y": "int"}, {"y": "3.0"}, {"y": 3}),
        ("cast", {"y": "int"}, {"y": " -12 "}, {"y": -12}),
        ("cast", {"y": "int"}, {"y": str(2**70)}, {"y": 2**70}),
        ("cast", {"y": "int"}, {"y": None}, {"y": None}),
        ("cast", {"y": "float"}, {"y": "1e3"}, {"y": 1000.0}),
        ("cast", {"y": "str"}, {"y": True}, {"y": "true"}),
        ("cast", {"y": "str"}, {"y": {"b": 1, "a": [2.0]}}, {"y": '{"a":[2.0],"b":1}'}),
        ("cast", {"y": "bool"}, {"y": "No"}, {"y": False}),
        ("cast", {"y": "json"}, {"y": '{"a": [1, null]}'}, {"y": {"a": [1, None]}}),
        (
            "template",
            {"url": "{{ namespace }}/{{ id }}", "a": "{{ metadata.a }}{{ metadata.b }}"},
            {"a": "1", "b": "2"},
            {"url": "ns/id0", "a": "12", "b": "2"},
        ),
        ("split", {"t": ","}, {"t": "a, b,,c"}, {"t": ["a", "b", "", "c"]}),
        ("split", {"t": ","}, {"t": " "}, {"t": []}),
        ("split", {"n": {"by": " ", "into": ["f", "l"]}}, {"n": "A B"}, {"f": "A", "l": "B"}),
        ("split", {"n": {"by": " ", "into": ["n", "l"]}}, {"n": "A B"}, {"n": "A", "l": "B"}),
        ("join", {"t": "; "}, {"t": ["a", 1, True, 0.5]}, {"t": "a; 1; true; 0.5"}),
        ("join", {"n": {"by": " ", "from": ["f", "l"]}}, {"f": "A", "l": "B"}, {"n": "A B"}),
        (
            "flatten",
            True,
            {"a": {"b": {"c": 1}, "d": []}, "e": {}},
            {"a.b.c": 1, "a.d": [], "e": {}},
        ),
        (
            "flatten",
            {"fields": ["a"], "sep": "_"},
            {"a": {"b": 1}, "c": {"d": 2}},
            {"a_b": 1, "c": {"d": 2}},
        ),
        ("unflatten", True, {"a.b.b": 1, "a.c": 2, "d": 3}, {"a": {"b": {"b": 1}, "c": 2}, "d": 3}),
        (
            "unflatten",
            {"fields": ["a"]},
            {"a.b": 1, "c.d": 2, "a": {"x": 0}},
            {"a": {"x": 0, "b": 1}, "c.d": 2},
        ),
        ("lower", ["*"], {"a": "ÄB", "b": ["X", 1], "c": 1}, {"a": "äb", "b": ["x", 1], "c": 1}),
        ("trim", ["a"], {"a": "  x\n", "b": " y "}, {"a": "x", "b": " y "}),
        ("redact", {"fields": ["mail"]}, {"mail": 17}, {"mail": "[redacted]"}),
        ("redact", {"fields": ["mail"], "with": None}, {"mail": "x"}, {"mail": None}),
        (
            "redact",
            {"fields": ["t"], "pattern": "[0-9]+", "with": r"\1"},
            {"t": ["a1", "b22"]},
            {"t": [r"a\1", r"b\1"]},
        ),
        (
            "hash",
            {"fields": ["a"]},
            {"a": "abc", "b": 1},
            {"a": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "b": 1},
        ),
        (  # the second test case of RFC 4231
            "hash",
            {"fields": ["a"], "salt": "Jefe"},
            {"a": "what do ya want for nothing?"},
            {"a": "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"},
        ),
        ("parse_date", {"d": "auto"}, {"d": "2024-01-31"}, {"d": "2024-01-31"}),
        (
            "parse_date",
            {"d": "auto"},
            {"d": "20240131T1000+0200"},
            {"d": "2024-01-31T10:00:00+02:00"},
        ),
        ("parse_date", {"d": "auto"}, {"d": "2024-01-31 10:00"}, {"d": "2024-01-31T10:00:00"}),
        (
            "parse_date",
            {"d": "auto"},
            {"d": "Wed, 31 Jan 2024 10:00:00 GMT"},
            {"d": "2024-01-31T10:00:00Z"},
        ),
        ("parse_date", {"d": "%d.%m.%Y"}, {"d": "31.1.2024"}, {"d": "2024-01-31"}),
        (
            "parse_date",
            {"d": "%d.%m.%Y %H:%M"},
            {"d": "31.1.2024 9:05"},
            {"d": "2024-01-31T09:05:00"},
        ),
        ("parse_date", {"d": "unix"}, {"d": 1706695200}, {"d": "2024-01-31T10:00:00Z"}),
        ("parse_date", {"d": "unix_ms"}, {"d": "1706695200000"}, {"d": "2024-01-31T10:00:00Z"}),
    ],
)
def test_a_transform_does_what_it_says(
    name: str, args: Any, before: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = after(name, args, before)
    assert Metadata(objects=[found]) == Metadata(objects=[expected])


@pytest.mark.parametrize(
    ("name", "args", "before", "field", "reason"),
    [
        ("rename", {"a": "b"}, {"a": 1, "b": 2}, "a", "exists already"),
        ("cast", {"y": "int"}, {"y": "n.d."}, "y", "is text that is not a whole number"),
        ("cast", {"y": "int"}, {"y": 3.5}, "y", "not a whole number"),
        ("cast", {"y": "int"}, {"y": "1,000"}, "y", "not a whole number"),
        ("cast", {"y": "int"}, {"y": "1" * 5000}, "y", "too many digits"),
        ("cast", {"y": "float"}, {"y": 2**53 + 1}, "y", "cannot hold exactly"),
        ("cast", {"y": "float"}, {"y": 10**400}, "y", "too large"),
        ("cast", {"y": "float"}, {"y": "nan"}, "y", "not a number"),
        ("cast", {"y": "bool"}, {"y": "perhaps"}, "y", "neither true nor false"),
        ("cast", {"y": "json"}, {"y": "{"}, "y", "not JSON"),
        ("cast", {"y": "json"}, {"y": "[NaN]"}, "y", "not JSON"),
        ("cast", {"y": "json"}, {"y": "1e999"}, "y", "NaN or infinity"),
        ("cast", {"y": "json"}, {"y": "[" * 240 + "]" * 240}, "y", "nests deeper"),
        ("cast", {"y": "json"}, {"y": "[" * 10**5}, "y", "not JSON"),
        ("template", {"u": "{{ metadata.slug }}"}, {}, "u", "`slug` is undefined"),
        ("split", {"t": ","}, {"t": 1}, "t", "not text"),
        ("split", {"n": {"by": " ", "into": ["f", "l"]}}, {"n": "A B C"}, "n", "has 3 parts"),
        ("split", {"n": {"by": " ", "into": ["f"]}}, {"n": "A", "f": 1}, "n", "overwrite"),
        ("join", {"t": ","}, {"t": ["a", None]}, "t", "holds null"),
        ("join", {"n": {"by": " ", "from": ["f", "l"]}}, {"f": "A"}, "n", "there is no `l`"),
        ("flatten", True, {"a": {"b": 1}, "a.b": 2}, "a", "exist already"),
        ("unflatten", True, {"a": 1, "a.b": 2}, "a.b", "is taken"),
        ("unflatten", True, {".".join("a" * 400): 1}, ".".join("a" * 400), "levels"),
        ("redact", {"fields": ["p"], "pattern": "1"}, {"p": 4917}, "p", "a pattern needs text"),
        ("parse_date", {"d": "auto"}, {"d": "03/04/2024"}, "d", "not a date"),
        ("parse_date", {"d": "auto"}, {"d": 2024}, "d", "not text"),
        ("parse_date", {"d": "auto"}, {"d": "2024-01-31T10:00:00.1234567"}, "d", "microseconds"),
        ("parse_date", {"d": "%d.%m.%Y"}, {"d": "31.2.2024"}, "d", "does not fit"),
        ("parse_date", {"d": "unix"}, {"d": 1706695200000}, "d", "1970 and 9999"),
    ],
)
def test_what_cannot_be_computed_fails_with_its_field(
    name: str, args: Any, before: dict[str, Any], field: str, reason: str
) -> None:
    with pytest.raises(TransformError) as caught:
        after(name, args, before)
    assert f"transforms[0].{name}: record 'id0': metadata.{field} " in caught.value.what
    assert reason in caught.value.what
    assert "n.d." not in str(caught.value)
    set_null = chain(step(name, args, OnError.SET_NULL)).apply(batch(before))
    assert set_null.batch.metadata[0][field] is None
    assert set_null.stats["transforms[0]"].failed_fields == {field: 1}


@pytest.mark.parametrize(
    ("name", "args", "path", "what"),
    [
        ("rename", {"a": "c", "b": "c"}, "rename", "2 fields would become 'c'"),
        ("rename", {"a": 1}, "rename.a", "expected text, found a whole number"),
        ("rename", ["a"], "rename", "expected a mapping, found a list"),
        ("rename", {}, "rename", "the mapping is empty"),
        ("keep", "title", "keep", "expected a list, found text"),
        ("drop", ["a", 1], "drop[1]", "expected text, found a whole number"),
        ("cast", {"y": "integer"}, "cast.y", "integer is not one of int, float, str, bool, json"),
        ("default", {"y": math.nan}, "default.y", "NaN"),
        ("template", {"u": "{{ metadata.slug"}, "template.u", "not a template"),
        ("template", {"u": "{{ slug }}"}, "template.u", "`slug` is not a variable"),
        ("split", {"t": ""}, "split.t", "the separator is empty"),
        ("split", {"t": {"on": ","}}, "split.t.on", "is not one of by, into"),
        ("split", {"t": 1}, "split.t", "expected text or a mapping, found a whole number"),
        ("join", {"t": {"by": " ", "from": "a"}}, "join.t.from", "expected a list of fields"),
        ("flatten", False, "flatten", "expected a list or false is not true"),
        ("flatten", {"sep": ""}, "flatten.sep", "the separator is empty"),
        ("flatten", {"separator": "_"}, "flatten.separator", "is not one of fields, sep"),
        ("hash", {"algorithm": "sha256"}, "hash", "lacks `fields`"),
        ("hash", {"fields": ["a"], "algorithm": "md5"}, "hash.algorithm", "md5 is not one of"),
        ("redact", {"fields": ["a"], "pattern": "("}, "redact.pattern", "regular expression"),
        ("redact", {"fields": ["a"], "wiht": "x"}, "redact.wiht", "is not one of"),
        ("parse_date", {"d": "iso"}, "parse_date.d", "expected auto, unix, unix_ms, or a format"),
        ("parse_date", {"d": "%Q"}, "parse_date.d", "no year"),
        ("parse_date", {"d": "%Y %Q"}, "parse_date.d", "not a format"),
        ("renam", {"a": "b"}, "renam", "'renam' is not a transform"),
    ],
)
def test_wrong_arguments_are_told_at_their_place(
    name: str, args: Any, path: str, what: str
) -> None:
    [(found_path, found, _)] = lint_step(step(name, args), plan_dir=HERE, root=HERE)
    assert found_path == f"transforms[0].{path}"
    assert what in found
    with pytest.raises(PlanError) as caught:
        chain(step(name, args))
    assert [problem.path for problem in caught.value.problems] == [f"transforms[0].{path}"]


def test_all_wrong_steps_are_told_at_once() -> None:
    with pytest.raises(PlanError) as caught:
        chain(step("cast", {"y": "x"}), step("keep", ["a"], at=1), step("nil", 1, at=2))
    assert [each.path for each in caught.value.problems] == [
        "transforms[0].cast.y",
        "transforms[2].nil",
    ]


def test_a_word_that_is_nearly_right_is_suggested() -> None:
    [(_, _, hint)] = lint_step(step("renam", {"a": "b"}), plan_dir=HERE, root=HERE)
    assert hint == "did you mean `rename`?"


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
objects = st.dictionaries(st.text(max_size=4), values, max_size=5)
plain_keys = st.text(st.characters(exclude_characters=".", exclude_categories=["Cs"]), max_size=3)
nested = st.dictionaries(
    plain_keys,
    st.recursive(st.integers(), lambda inner: st.dictionaries(plain_keys, inner, max_size=3)),
    max_size=4,
)


@given(objects)
def test_rename_keeps_every_value(metadata: dict[str, Any]) -> None:
    mapping = {name: f"new {name}" for name in metadata} or {"a": "b"}
    found = after("rename", mapping, metadata)
    assert found == {f"new {name}": value for name, value in metadata.items()}


@given(nested)
def test_unflatten_undoes_flatten(metadata: dict[str, Any]) -> None:
    both = chain(step("flatten", True), step("unflatten", True, at=1))
    assert both.apply(batch(metadata)).batch.metadata[0] == metadata


@given(values, st.sampled_from(["int", "float", "str", "bool"]))
def test_casting_twice_is_casting_once(value: Any, kind: str) -> None:
    once = chain(step("cast", {"x": kind}, OnError.DEAD_LETTER)).apply(batch({"x": value})).batch
    twice = chain(step("cast", {"x": kind})).apply(once).batch
    assert once.metadata == twice.metadata


@given(st.datetimes(timezones=st.none() | st.timezones()))
def test_a_date_that_was_written_is_read_as_itself(moment: Any) -> None:
    metadata = {"d": moment.isoformat()}
    if "+" in metadata["d"] and metadata["d"].count(":") > 3:
        return  # offsets with seconds, of times before standard time
    once = after("parse_date", {"d": "auto"}, metadata)
    assert after("parse_date", {"d": "auto"}, once) == once


@given(st.lists(objects, max_size=4))
def test_the_source_is_never_changed(metadata: list[dict[str, Any]]) -> None:
    before = batch(*metadata)
    copy = Metadata(texts=list(before.metadata.texts()))
    chain(
        step("flatten", True, OnError.DEAD_LETTER),
        step("unflatten", True, OnError.KEEP, at=1),
        step("cast", {"a": "str"}, OnError.SET_NULL, at=2),
        step("drop", ["b*"], at=3),
    ).apply(before)
    assert before.metadata == copy
