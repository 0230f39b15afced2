"""The screens, exactly."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from runner.errors import PausedError, PlanError, Problem, StoppedError, StoreError
from runner.report.terminal import Result, failure, problems, render
from runner.results import HazardRow, Verdict
from tests.unit.report_examples import (
    DRY_RUN,
    FAILED,
    FAR,
    HOSTILE,
    INSPECT,
    LONG,
    PASSED,
    ROLLBACK,
    RUNNING,
    STOPPED,
    printed,
)

EVERY = [DRY_RUN, PASSED, FAILED, INSPECT, STOPPED, ROLLBACK, HOSTILE]
SHOWN = [DRY_RUN, PASSED, FAILED, INSPECT, STOPPED, RUNNING, ROLLBACK, HOSTILE, FAR]


def test_the_screen_of_a_passed_run() -> None:
    assert printed(render, PASSED) == """\
PASSED  docs-chroma-to-pgvector · 1,512 records · 11.8 s
  count      1,512 = 1,512                                           all counted
  ids        0 missing · 0 extra                                    all compared
  checksum   2 of 2 batches read back identical
  metadata   1,000 of 1,000 records identical         at most 0.3 % wrong (95 %)
  queries    recall@10  source 0.998 · target 1.000 · overlap 0.997   60 queries
  report     plans/.runner/docs-chroma-to-pgvector/runs/2026-11-23T10-15/report.html
next  switch your application's reads
      runner rollback plans/docs.yaml undoes this run
"""  # fmt: skip


def test_each_of_several_vectors_has_a_line_that_names_it() -> None:
    (check,) = [each for each in PASSED.checks if each.name == "queries"]
    several = tuple(replace(check, name=f"queries: {each}") for each in ("title", "body"))
    screen = printed(render, replace(PASSED, checks=several))
    lines = [line for line in screen.splitlines() if line.startswith("  queries")]
    assert [line.split("recall")[0] for line in lines] == [
        "  queries    title  ", "  queries    body  ",
    ]  # fmt: skip


def test_the_screen_of_a_failed_run_with_everything_that_can_go_wrong() -> None:
    assert printed(render, FAILED) == """\
FAILED  docs-chroma-to-pgvector · 1,512 records · 11.8 s · resumed twice
  queries    FAILED  recall@10  source 0.990 · target 0.710 ·         60 queries
             overlap 0.700
    asked    recall of the target ≥ 0.99 of the source's
    wrong    question 0: 2 of 10 found
             question 1: 2 of 10 found
             question 2: 2 of 10 found
             and 7 more in the report
    likely   the index was built with l2, the collection is cosine:
             target.index.metric
  count      1,512 = 1,512                                           all counted
  ids        0 missing · 0 extra                                    all compared
  metadata   skipped  nothing to compare
  set aside  4 records: dead_letters.jsonl beside the report         all counted
  retries    3 after transient errors
  changed    tags, score: some of it for good; see the report
  report     plans/.runner/docs-chroma-to-pgvector/runs/2026-11-23T10-15/report.html

1 warning
  the source changed while it was read
    run again

next  look at the failures above; the report has all of them
"""  # fmt: skip


def test_the_screen_of_a_dry_run_with_a_problem() -> None:
    assert printed(render, DRY_RUN) == """\
docs-chroma-to-pgvector · big bang · dry run, nothing is written
Consolidate on PostgreSQL

  from  chroma    ./chroma_data/documents  1,512 records · 384 dims · cosine
  to    pgvector  db.internal/documents    does not exist, will be created

Fields
  title       text             100 %  kept
  src         text → source    100 %  renamed
  year        text, int → int   98 %  31 are not numbers → fail
  internal_*  text             100 %  dropped by the plan
  url                                 added

Loss report
  tags   list of objects → JSON text          12 of 1,512 · can be undone · json
  score  double: the source itself moves it   for good · store
         by 1 ulp

Steps
  1 create table documents (id text primary key, …, embedding vector(384))
  2 copy   2 batches ≤ 1,000 records, 2 writers, every batch read back
  3 index  hnsw cosine, m 16, ef_construction 64
  4 check  count · ids · checksum · metadata 1,000 · queries 60

Estimate   1,512 records · 3.4 MB · 2 batches · about 12 s
           read 8,100/s measured, write 9,000/s assumed
Hazards    none

1 problem
  plans/docs.yaml:17:5: transforms[1].cast.year: would fail on 31 records, e.g.
  id "doc-00311": "n.d."
    on_error: set_null | dead_letter

This plan would not run: solve what is named above, then dry-run again
"""  # fmt: skip


def test_the_screen_of_the_status_of_a_stopped_run() -> None:
    assert printed(render, STOPPED) == """\
docs-chroma-to-pgvector · copy, not running
  copied     612,000 of 1,000,000 records (61 %) · 1.4 GB
  rate       14,210/s
  retries    3 after transient errors
  begun      2026-11-23 10:15:00 UTC · at work for 43.1 s
  last sign  2026-11-23 10:15:43 UTC
  run        2026-11-23T10-15
  earlier    1 run
next  runner resume plans/docs.yaml      goes on from here
      runner rollback plans/docs.yaml    removes what this run created
"""  # fmt: skip


def test_the_status_of_a_running_run_tells_whether_one_can_leave_it_alone() -> None:
    assert printed(render, RUNNING) == """\
docs-chroma-to-pgvector · copy, running now
  copied     612,000 of 1,000,000 records (61 %) · 1.4 GB
  rate       14,210/s · 0:27 left
  retries    3 after transient errors
  begun      2026-11-23 10:15:00 UTC · at work for 43.1 s
  last sign  2026-11-23 10:15:43 UTC · 2.4 s ago
  run        2026-11-23T10-15
  earlier    1 run
next  nothing: it goes on by itself
      runner status plans/docs.yaml    looks again
"""  # fmt: skip


def test_a_place_stays_whole_and_what_is_there_stands_below_if_there_is_no_room() -> None:
    assert f"""
  from  chroma    /srv/{LONG}
                  1,512 records · 384 dims · cosine
  to    pgvector  {LONG}
                  does not exist, will be created
""" in printed(render, FAR)
    assert f"  to    pgvector  {LONG}       does not exist" in printed(render, FAR, width=160)


def test_the_screen_of_what_is_in_both_ends() -> None:
    assert printed(render, INSPECT) == """\
docs-chroma-to-pgvector · what is there

source  chroma  ./chroma_data/documents
  records    1,512 · about 2.3 kB each
  vector     (unnamed)  384 dims · cosine · float32 · exact
  index      hnsw cosine m 16
  ids        text (1,512) · longest 9 bytes
  documents  99 % of the records have one · longest 12,345 characters

Fields  in 1,512 records looked at
  title  text       100 %  1,498 distinct
  src    text       100 %  7 distinct
  year   text, int   98 %  over 1,000 distinct

target  pgvector  db.internal/documents
  does not exist, will be created
"""  # fmt: skip


def test_the_screen_of_the_preview_of_a_rollback() -> None:
    assert printed(render, ROLLBACK) == """\
docs-chroma-to-pgvector · rollback, nothing has been removed yet
  target     pgvector  db.internal/documents
  does       delete 1,509 records of this run
  keeps      3 records: changed since by someone else, e.g. "a", 7, "c\\x1b[31m"
next  runner rollback plans/docs.yaml --yes
"""  # fmt: skip


def test_a_refused_plan_names_every_problem_and_that_nothing_happened() -> None:
    error = PlanError.of(
        [
            Problem("plans/docs.yaml", 14, 15, "batch_size", '"1k" is not a whole number'),
            Problem(
                "plans/docs.yaml", 6, 3, "source.colection", "unknown key",
                "did you mean `collection`?",
            ),
        ]
    )  # fmt: skip
    expected = """\
plans/docs.yaml:6:3: source.colection: unknown key
  did you mean `collection`?
plans/docs.yaml:14:15: batch_size: "1k" is not a whole number
2 problems; nothing was read or written
"""
    assert printed(problems, error) == expected
    assert printed(failure, error) == expected


def test_a_plan_error_without_a_place_counts_as_one_problem() -> None:
    assert printed(problems, PlanError("--var x: expected KEY=VALUE", "write --var x=1")) == """\
--var x: expected KEY=VALUE
  write --var x=1
1 problem; nothing was read or written
"""  # fmt: skip


@pytest.mark.parametrize(
    "error",
    [
        StoppedError("{}", "", 2),
        PausedError("{}"),
    ],
)
def test_a_stopped_run_says_how_to_go_on(error: StoppedError | PausedError) -> None:
    error.what = (
        "Stopped after 612,000 of 1,000,000 records. Nothing is lost; the target is incomplete.\n"
        "  run plans/docs.yaml    goes on from here"
    )
    assert printed(failure, error) == error.what + "\n"


def test_other_failures_show_what_and_the_hint() -> None:
    assert printed(failure, StoreError("no\x07 answer", "is it running?")) == (
        "no\\x07 answer\n  is it running?\n"
    )


def test_a_ready_dry_run_ends_with_what_to_do_next() -> None:
    ready = replace(DRY_RUN, problems=(), exit_code=0)
    assert printed(render, ready).endswith(
        "\nnext  the same command without --dry-run runs these steps\n"
    )


def test_a_hazard_that_is_not_allowed_is_named_with_its_permission() -> None:
    hazard = HazardRow("replace-target", "the table holds 3 records")
    text = printed(render, replace(DRY_RUN, hazards=(hazard,), problems=(), exit_code=4))
    assert "Hazards    1 hazard not allowed\n" in text
    assert "replace-target: the table holds 3 records · NOT ALLOWED: --allow" in text
    assert "This plan would not run" in text


def test_a_run_without_checks_does_not_claim_a_proof() -> None:
    text = printed(render, replace(PASSED, checks=(), verdict=Verdict.SKIPPED))
    assert text.startswith("DONE, nothing was checked  ")
    assert "none; the plan asks for none" in text


def test_verbose_shows_every_failure() -> None:
    text = printed(render, FAILED, verbose=True)
    assert "question 9: 2 of 10 found" in text
    assert "more in the report" not in text
    assert "fingerprint" in text


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("result", EVERY, ids=lambda each: type(each).__name__)
def test_no_screen_has_colour_codes_or_control_characters_off_a_terminal(
    result: Result, verbose: bool
) -> None:
    text = printed(render, result, verbose=verbose)
    assert all(each.isprintable() or each == "\n" for each in text)


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("result", EVERY, ids=lambda each: type(each).__name__)
def test_no_field_name_is_cut_by_a_narrow_screen(result: Result, width: int) -> None:
    if result is HOSTILE:
        return
    text = "".join(printed(render, result, width=width, verbose=True).split())
    fields = getattr(result, "fields", ()) or [
        row for side in getattr(result, "sides", ()) for row in side.fields
    ]
    for row in fields:
        assert "".join(row.name.split()) in text


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
@pytest.mark.parametrize("verbose", [False, True], ids=["brief", "verbose"])
@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("result", SHOWN, ids=lambda each: type(each).__name__)
def test_no_line_ends_in_blanks_or_is_wider_than_the_screen(
    result: Result, width: int, verbose: bool, terminal: bool
) -> None:
    """Only what is to be copied whole may be wider: a path, an address, a command."""
    text = printed(render, result, width=width, verbose=verbose, terminal=terminal)
    for line in text.splitlines():
        assert line == line.rstrip()
        if cell_len(line) > width:
            longest = max(line.split(), key=len)
            assert len(longest) > width // 2 or line.startswith(("next  ", "      "))


def test_colours_only_repeat_words() -> None:
    out = io.StringIO()
    render(FAILED, Console(file=out, width=80, force_terminal=True, color_system="standard"))
    assert "\x1b[1;31mFAILED" in out.getvalue()
    assert "FAILED" in printed(render, FAILED)
