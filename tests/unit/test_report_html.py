"""The report page: whole, silent, safe and small."""

from __future__ import annotations

import html
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from runner.report.charts import charts_of
from runner.report.html import to_html
from runner.report.markdown import to_markdown
from runner.results import CheckResult, FieldRow, LossRow, Remark, RunResult, Sample, Verdict
from runner.words import duration, moment, number, size
from tests.unit.report_examples import EVIL, FAILED, HOSTILE, PASSED, QUERIES

VOID = {"meta", "br", "link", "img", "input", "hr"}
EMPTY = replace(
    PASSED, checks=(), fields=(), losses=(), steps=(), hazards=(), throughput=(), versions={},
    plan_text="", next=(), description="", verdict=Verdict.SKIPPED,
)  # fmt: skip
EVERY = {"passed": PASSED, "failed": FAILED, "hostile": HOSTILE, "empty": EMPTY}


class Page(HTMLParser):
    """Takes a page apart and remembers what could reach out or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.styles: list[str] = []
        self.comments: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_comment(self, comment: str) -> None:
        self.comments.append(comment)

    def handle_data(self, text: str) -> None:
        (self.styles if self.open and self.open[-1] == "style" else self.text).append(text)


@pytest.fixture(params=EVERY, scope="module")
def page(request: pytest.FixtureRequest) -> Page:
    return Page(to_html(EVERY[request.param]))


def test_every_element_is_closed_in_order(page: Page) -> None:
    assert not page.open


def test_nothing_on_the_page_runs_or_reaches_out(page: Page) -> None:
    assert not {"script", "iframe", "object", "embed", "link", "img", "base", "form"} & set(
        page.tags
    )
    for name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "href", "xlink:href", "action", "srcset")
        assert name == "xmlns" or name.startswith("data-") or "://" not in value
    styles = " ".join(page.styles)
    assert not re.search(r"url\(|@import|://", styles)
    assert not page.comments


def test_a_policy_forbids_what_a_mistake_would_let_in(page: Page) -> None:
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_the_banner_comes_first(page: Page) -> None:
    seen = [each.strip() for each in page.text if each.strip()]
    assert seen[1] in ("PASSED", "FAILED", "DONE, nothing was checked")


def test_a_hostile_name_is_shown_as_text() -> None:
    page = Page(to_html(HOSTILE))
    assert any("<script>alert(1)</script>" in each for each in page.text)
    assert "\x1b" not in "".join(page.text)


def test_sections_come_in_the_order_of_interest() -> None:
    text = " ".join(Page(to_html(FAILED)).text)
    order = [
        "FAILED", "What failed", "Next", "What moved", "What changed on the way", "Proof",
        "Hazards", "Steps", "The plan", "Versions",
    ]  # fmt: skip
    places = [text.index(each) for each in order]
    assert places == sorted(places)
    assert "the index was built with l2" in text


def test_every_chart_says_what_it_shows() -> None:
    page = Page(to_html(PASSED))
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert labels == ["Records a second", "Recall@10 of 60 queries", "Time to answer one query"]
    assert page.tags.count("figcaption") == 3
    assert any("The mean recall is 0.997 in the source and 1.000" in each for each in page.text)


def test_drawing_charts_leaves_imports_as_they_were() -> None:
    assert not [each for each in sys.meta_path if not hasattr(each, "find_spec")]


def test_two_pages_of_one_result_are_the_same() -> None:
    assert to_html(PASSED) == to_html(PASSED)


def test_no_two_charts_share_their_style_rules() -> None:
    names = [value for name, value in Page(to_html(PASSED)).attributes if name == "id"]
    charts = [each for each in names if each.startswith("chart-")]
    assert len(charts) == len(set(charts)) == 3
    assert all(re.fullmatch("[a-z-]+", each) for each in charts)


def test_the_recall_chart_counts_queries_by_neighbours_found() -> None:
    recall = charts_of(PASSED)["queries"][0]
    assert recall.rows == (("90 %", "2", "0"), ("100 %", "58", "60"))


def test_a_source_that_cannot_search_has_no_bars() -> None:
    evidence = {**QUERIES.evidence, "recall_source": [], "latency_source_ms": []}
    result = replace(PASSED, checks=(replace(QUERIES, evidence=evidence),))
    assert [chart.head[1:] for chart in charts_of(result)["queries"]] == [("target",), ("target",)]


@pytest.mark.parametrize(
    "throughput",
    [(), (Sample(0.0, 5, 5),), (Sample(1.0, 5, 5),), (Sample(0.0, 0, 0), Sample(0.0, 9, 9))],
)
def test_a_copy_too_short_to_measure_has_no_chart(throughput: tuple[Sample, ...]) -> None:
    assert "copy" not in charts_of(replace(PASSED, throughput=throughput))


def test_a_check_whose_name_is_a_word_of_ours_is_harmless() -> None:
    to_html(replace(PASSED, checks=(CheckResult("copy", Verdict.PASSED, "x"),)))


def huge() -> RunResult:
    name = EVIL * 1000
    numbers = [each % 101 / 100 for each in range(100_000)]
    evidence = {**QUERIES.evidence, "k": 500, "recall_source": numbers, "recall_target": numbers,
                "latency_source_ms": numbers, "latency_target_ms": numbers}  # fmt: skip
    return replace(
        FAILED,
        fields=tuple(FieldRow(name, (name,), name, 1, 1, note=name) for _ in range(3000)),
        losses=tuple(LossRow(name, name, 1, 1, name, reversible=True) for _ in range(3000)),
        warnings=tuple(Remark(name, name, name) for _ in range(3000)),
        throughput=tuple(Sample(float(each), each, each) for each in range(1, 100_000)),
        checks=(replace(QUERIES, failures=(name,) * 100, evidence=evidence),),
        plan_text=name * 100,
    )


def test_the_page_stays_below_a_megabyte_whatever_the_run_was_like() -> None:
    text = to_html(huge())
    assert len(text.encode()) <= 1_000_000
    assert "more in the JSON form" in text


@pytest.mark.parametrize("result", [PASSED, FAILED], ids=["passed", "failed"])
def test_page_and_markdown_hold_the_same_facts(result: RunResult) -> None:
    seen = re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]+>", " ", to_html(result), flags=re.S)
    forms = {
        "page": html.unescape(seen),
        "Markdown": re.sub(r"<[^>]+>|[\\`]|\*\*", "", to_markdown(result)),
    }
    facts = [
        result.name, result.description, result.run_id, moment(result.started_at),
        result.fingerprint, result.target_digest, result.audit_head,
        number(result.records), size(result.size_bytes), duration(result.seconds),
        *(fact for side in (result.source, result.target)
          for fact in (side.store, side.place, side.index, number(side.records))),
        *(fact for row in result.fields for fact in (row.name, row.becomes, row.note)),
        *(row.what for row in result.losses),
        *(fact for row in result.steps for fact in (row.text, duration(row.seconds))),
        *(fact for row in result.hazards for fact in (row.name, row.why, row.allowed_by)),
        *(fact for row in result.warnings for fact in (row.what, row.hint)),
        *(fact for each in result.checks
          for fact in (each.name, each.summary, each.advice, each.threshold, *each.failures)),
        *(fact for each in result.checks if each.verdict is not Verdict.SKIPPED
          for fact in (each.coverage,)),
        *(f"{name} {version}" for name, version in result.versions.items()),
        *result.plan_text.splitlines(),
        *(act.split("    ")[0] for act in result.next),
    ]  # fmt: skip
    for form, text in forms.items():
        flat = " ".join(text.split())
        for fact in facts:
            assert " ".join(fact.split()) in flat, (form, fact)


def test_the_end_of_the_copy_is_no_rate_of_its_own() -> None:
    samples = (*(Sample(each / 2, each * 100, each * 1000) for each in range(1, 9)),
               Sample(4.01, 800, 8000))  # fmt: skip
    [chart] = charts_of(replace(PASSED, throughput=samples))["copy"]
    assert "between 196/s and 200/s" in chart.says
