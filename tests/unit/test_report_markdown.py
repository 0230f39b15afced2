"""Results as Markdown."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.report.markdown import Result, _code, _text, to_markdown
from runner.results import FieldRow
from tests.unit.report_examples import (
    DRY_RUN,
    FAILED,
    HOSTILE,
    INSPECT,
    PASSED,
    ROLLBACK,
    STOPPED,
)

EVERY = [DRY_RUN, PASSED, FAILED, INSPECT, STOPPED, ROLLBACK, HOSTILE]
_CELL_END = re.compile(r"(?<!\\)\|")


@pytest.mark.parametrize("result", EVERY, ids=lambda each: type(each).__name__)
def test_every_table_row_has_as_many_cells_as_its_head(result: Result) -> None:
    widths: list[int] = []
    inside = False
    for line in to_markdown(result).splitlines():
        if not line.startswith("| "):
            inside = False
            continue
        cells = len(_CELL_END.findall(line))
        if inside:
            assert cells == widths[-1], line
        else:
            widths.append(cells)
        inside = True
    assert widths or result in (STOPPED, ROLLBACK)


def test_the_verdict_comes_first_and_failures_name_the_records() -> None:
    text = to_markdown(FAILED)
    assert text.startswith("## ❌ FAILED: docs-chroma-to-pgvector\n")
    assert "- question 9: 2 of 10 found\n" in text
    assert "Likely: the index was built with l2" in text


def test_a_dry_run_for_review() -> None:
    text = to_markdown(DRY_RUN)
    assert "**This plan would not run.**" in text
    assert (
        "| `src` | text | `source` | 100 % | renamed |\n"
        "| `year` | text, int | `int` | 98 % | 31 are not numbers → fail |\n"
    ) in text
    assert "| `tags` | list of objects → JSON text | 12 of 1,512 | json | restored |\n" in text


def test_nothing_hostile_gets_through_as_markup() -> None:
    text = to_markdown(HOSTILE)
    prose = re.sub(r"(`+).+?\1", "", text.split("<details>")[0])
    assert "<script" not in prose
    assert "://" not in prose
    assert all(each.isprintable() or each == "\n" for each in text)


def test_a_plan_cannot_end_its_code_block() -> None:
    text = to_markdown(PASSED.__class__(**{**vars(PASSED), "plan_text": "a\n```\n# b\n````\n"}))
    assert "`````yaml\na\n```\n# b\n````\n`````\n" in text


@given(st.text(alphabet="`|\\ a<", min_size=1, max_size=12))
def test_a_code_span_is_as_long_as_its_text(name: str) -> None:
    span = _code(name)
    if not name.strip():
        assert span == "(blanks)"
        return
    fence = re.match("`+", span)
    assert fence is not None
    inner = span[len(fence[0]) : -len(fence[0])]
    assert inner.strip(" ") == name.strip(" ")
    assert fence[0] not in re.findall("`+", inner)


@given(st.text(max_size=40))
def test_text_is_one_line_without_tags(text: str) -> None:
    found = _text(text).replace("<span></span>", "")
    assert found.isprintable()
    assert "<" not in found


def test_nobody_is_mentioned_but_recall_at_ten_stays() -> None:
    assert _text("@octocat") == "@<span></span>octocat"
    assert _text("recall@10") == "recall@10"


def test_many_fields_are_cut_with_a_word() -> None:
    rows = tuple(FieldRow(f"f{each}", ("text",)) for each in range(1000))
    text = to_markdown(PASSED.__class__(**{**vars(PASSED), "fields": rows}))
    assert "and 800 more" in text
    assert "`f199`" in text
    assert "`f200`" not in text
