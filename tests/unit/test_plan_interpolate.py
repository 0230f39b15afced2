"""References: what is one, what it becomes, and when that is a number."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.plan.interpolate import BadReferenceError, Kind, Reference, Values, split


def _joined(text: str, values: Values) -> str:
    return "".join(part if isinstance(part, str) else values.look_up(part) for part in split(text))


def test_literals_and_references_come_apart_in_order() -> None:
    assert split("a${B}c${file:d/e f.txt}${var:g-h.i}") == [
        "a",
        Reference(Kind.ENVIRONMENT, "B"),
        "c",
        Reference(Kind.FILE, "d/e f.txt"),
        Reference(Kind.VARIABLE, "g-h.i"),
    ]


@pytest.mark.parametrize(
    ("text", "literal"),
    [
        ("$${A}", "${A}"), ("$$${A}", "$${A}"), ("$", "$"), ("$A", "$A"), ("{A}", "{A}"),
        ("", ""), ("a}b", "a}b"), ("$$", "$$"), ("x$${", "x${"),
    ],
)  # fmt: skip
def test_escapes_and_lone_signs_are_literal(text: str, literal: str) -> None:
    assert split(text) == [literal]


@pytest.mark.parametrize(
    "text",
    [
        "${", "${}", "${a b}", "${1A}", "${file:}", "${var:}", "${env:A}", "${A:-x}", "${${A}}",
        "${{ metadata.price }}", "a ${b",
    ],
)  # fmt: skip
def test_what_is_no_reference_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(BadReferenceError) as caught:
        split(text)
    assert caught.value.hint
    assert not caught.value.unset


@given(st.text())
def test_escaping_every_opening_gives_the_text_back(text: str) -> None:
    # "$" before an opening would read as part of the escape.
    escaped = text.replace("$", "").replace("{", "$${")
    assert split(escaped) == [escaped.replace("$${", "${")]


@given(st.lists(st.tuples(st.text(alphabet="ab {}", max_size=5), st.text(max_size=9)), max_size=5))
def test_what_is_put_in_is_never_looked_at_again(pairs: list[tuple[str, str]]) -> None:
    names = [f"N{number}" for number in range(len(pairs))]
    text = "".join(f"{before}${{{name}}}" for (before, _), name in zip(pairs, names, strict=True))
    environ = {name: value for (_, value), name in zip(pairs, names, strict=True)}
    values = Values(Path(), environ)
    expected = "".join(before + value for before, value in pairs)
    assert _joined(text, values) == expected


@given(st.text(alphabet="${}:filevarA /$", max_size=30))
def test_what_is_split_goes_together_again(text: str) -> None:
    try:
        parts = split(text)
    except BadReferenceError:
        return
    written = "".join(
        part.replace("${", "$${") if isinstance(part, str) else str(part) for part in parts
    )
    assert split(written) == parts


def test_a_file_is_read_beside_the_plan_without_its_last_line_feed(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "key").write_bytes(b"k\xc3\xa4y\n\r\n")
    assert _joined("${file:secrets/key}", Values(tmp_path, {})) == "käy\n"


@pytest.mark.parametrize("name", ["none", "key/below"])
def test_a_file_that_is_not_there_counts_as_unset(tmp_path: Path, name: str) -> None:
    (tmp_path / "key").write_text("x")
    with pytest.raises(BadReferenceError) as caught:
        _joined(f"${{file:{name}}}", Values(tmp_path, {}))
    assert caught.value.unset


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"\xff\xfe")
    (tmp_path / "large").write_bytes(b"x" * ((1 << 20) + 1))
    (tmp_path / "nul").write_bytes(b"x\0y")
    for name in ("key", "large", "nul"):
        with pytest.raises(BadReferenceError) as caught:
            _joined(f"${{file:{name}}}", Values(tmp_path, {}))
        assert not caught.value.unset


@pytest.mark.parametrize("name", ["pipe", "/dev/zero", "."])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadReferenceError, match=r"not a file|Is a directory") as caught:
        _joined(f"${{file:{name}}}", Values(tmp_path, {}))
    assert not caught.value.unset


def test_an_environment_variable_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(BadReferenceError, match="UTF-8"):
        _joined("${A}", Values(Path(), {"A": "\udcff"}))


def test_a_variable_that_is_nearly_there_is_suggested() -> None:
    with pytest.raises(BadReferenceError) as caught:
        _joined("${var:colection}", Values(Path(), {}, {"collection": "x"}))
    assert "${var:collection}" in caught.value.hint


def test_values_are_not_in_the_repr() -> None:
    assert "hunter2" not in repr(Values(Path(), {"A": "hunter2"}, {"b": "hunter2"}))
