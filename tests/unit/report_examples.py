"""Results to print: one of each kind, and hostile ones."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

from rich.console import Console

from runner.results import (
    CheckResult,
    DryRunResult,
    Estimate,
    FieldRow,
    HazardRow,
    InspectedSide,
    InspectResult,
    LossRow,
    Remark,
    RollbackResult,
    RunResult,
    Sample,
    Side,
    StatusResult,
    StepRow,
    Verdict,
)

SOURCE = Side(
    "chroma", "./chroma_data/documents", 1512, 384, "cosine", "exists", "hnsw cosine m 16"
)
NOWHERE = Side("pgvector", "db.internal/documents", state="does not exist, will be created")
TARGET = Side("pgvector", "db.internal/documents", 1512, 384, "cosine", "exists", "hnsw", 4_300_000)

FIELDS = (
    FieldRow("title", ("text",), records=1512, looked_at=1512, distinct=1498),
    FieldRow("src", ("text",), "source", 1512, 1512, distinct=7, note="renamed"),
    FieldRow("year", ("text", "int"), "int", 1489, 1512, note="31 are not numbers → fail"),
    FieldRow("internal_*", ("text",), "", 1512, 1512, note="dropped by the plan"),
    FieldRow("", (), "url", note="added"),
)
LOSSES = (
    LossRow("tags", "list of objects → JSON text", 12, 1512, "json", reversible=True),
    LossRow("score", "double: the source itself moves it by 1 ulp", None, 1512, "store",
            reversible=False),
)  # fmt: skip
STEPS = (
    StepRow(1, "create", "table documents (id text primary key, …, embedding vector(384))"),
    StepRow(2, "copy", "2 batches ≤ 1,000 records, 2 writers, every batch read back"),
    StepRow(3, "index", "hnsw cosine, m 16, ef_construction 64"),
    StepRow(4, "check", "count · ids · checksum · metadata 1,000 · queries 60"),
)

DRY_RUN = DryRunResult(
    name="docs-chroma-to-pgvector",
    strategy="big_bang",
    description="Consolidate on PostgreSQL",
    source=SOURCE,
    target=NOWHERE,
    fields=FIELDS,
    losses=LOSSES,
    steps=STEPS,
    thresholds=("count equal", "60 queries: recall@10 ≥ 0.99 of the source's"),
    estimate=Estimate(1512, 3_400_000, 2, 12.0, 8100.0, 9000.0),
    hazards=(),
    problems=(
        Remark(
            "plans/docs.yaml:17:5: transforms[1].cast.year",
            'would fail on 31 records, e.g. id "doc-00311": "n.d."',
            "on_error: set_null | dead_letter",
        ),
    ),
    warnings=(),
    notes=(),
    sampled=1512,
    fingerprint="f" * 64,
    exit_code=6,
)

QUERIES = CheckResult(
    name="queries",
    verdict=Verdict.PASSED,
    summary="recall@10  source 0.998 · target 1.000 · overlap 0.997",
    coverage="60 queries",
    threshold="recall of the target ≥ 0.99 of the source's",
    evidence={
        "k": 10,
        "recall_source": [1.0] * 58 + [0.9, 0.9],
        "recall_target": [1.0] * 60,
        "overlap": [1.0] * 58 + [0.9, 0.9],
        "recall_source_mean": 0.9967,
        "recall_target_mean": 1.0,
        "overlap_mean": 0.9967,
        "lower_bound": 0.011,
        "latency_source_ms": [1.0 + each / 20 for each in range(60)],
        "latency_target_ms": [2.0 + each / 15 for each in range(60)],
        "worst": [{"query": "how do I parse a date", "found": 9, "k": 10}],
    },
)
PASSED = RunResult(
    name="docs-chroma-to-pgvector",
    strategy="big_bang",
    description="Consolidate on PostgreSQL",
    run_id="2026-11-23T10-15",
    verdict=Verdict.PASSED,
    started_at="2026-11-23T10:15:00Z",
    seconds=11.8,
    resumed=0,
    source=SOURCE,
    target=TARGET,
    records=1512,
    size_bytes=3_400_000,
    dead_letters=0,
    retries=0,
    fields=FIELDS,
    losses=(),
    steps=tuple(replace(each, seconds=each.number * 1.3) for each in STEPS),
    hazards=(HazardRow("replace-target", "the table held 3 records", "--allow by ada"),),
    checks=(
        CheckResult("count", Verdict.PASSED, "1,512 = 1,512", "all counted", "equal"),
        CheckResult("ids", Verdict.PASSED, "0 missing · 0 extra", "all compared", "equal sets"),
        CheckResult("checksum", Verdict.PASSED, "2 of 2 batches read back identical"),
        CheckResult("metadata", Verdict.PASSED, "1,000 of 1,000 records identical",
                    "at most 0.3 % wrong (95 %)"),
        QUERIES,
    ),
    throughput=tuple(
        Sample(each / 2, each * 71 + each % 4 * 9, each * 170_000) for each in range(21)
    ),
    warnings=(),
    plan_text="source:\n  store: chroma\n  path: ./chroma_data\n",
    fingerprint="f" * 64,
    target_digest="d" * 32,
    audit_head="a" * 64,
    versions={"runner": "0.1.0", "chromadb": "1.5.9"},
    report_path="plans/.runner/docs-chroma-to-pgvector/runs/2026-11-23T10-15/report.html",
    next=(
        "switch your application's reads",
        "runner rollback plans/docs.yaml undoes this run",
    ),
)  # fmt: skip
FAILED = replace(
    PASSED,
    verdict=Verdict.FAILED,
    losses=LOSSES,
    retries=3,
    resumed=2,
    dead_letters=4,
    warnings=(Remark("", "the source changed while it was read", "run again"),),
    checks=(
        *PASSED.checks[:2],
        CheckResult("metadata", Verdict.SKIPPED, "nothing to compare", "all compared"),
        CheckResult("dead letters", Verdict.PASSED,
                    "4 records: dead_letters.jsonl beside the report", "all counted"),
        replace(
            QUERIES,
            verdict=Verdict.FAILED,
            summary="recall@10  source 0.990 · target 0.710 · overlap 0.700",
            failures=tuple(f"question {each}: 2 of 10 found" for each in range(10)),
            advice="the index was built with l2, the collection is cosine: target.index.metric",
        ),
    ),
    next=("look at the failures above; the report has all of them",),
)  # fmt: skip
INSPECT = InspectResult(
    "docs-chroma-to-pgvector",
    (
        InspectedSide(
            "source", SOURCE, {"(unnamed)": "384 dims · cosine · float32 · exact"},
            tuple(replace(each, note="") for each in FIELDS[:3]),
            1512, {"text": 1512}, 9, 1500, 12_345, 2_300,
        ),
        InspectedSide("target", NOWHERE, {}, (), 0, {}, 0, 0, 0, 0),
    ),
)  # fmt: skip
STOPPED = StatusResult(
    name="docs-chroma-to-pgvector",
    run_id="2026-11-23T10-15",
    phase="copy",
    running=False,
    records=612_000,
    total=1_000_000,
    size_bytes=1_400_000_000,
    seconds=43.1,
    rate_per_s=14_210.0,
    dead_letters=0,
    retries=3,
    verdict=None,
    started_at="2026-11-23T10:15:00Z",
    updated_at="2026-11-23T10:15:43Z",
    history=("2026-11-22T09-00", "2026-11-23T10-15"),
    next=(
        "runner resume plans/docs.yaml    goes on from here",
        "runner rollback plans/docs.yaml    removes what this run created",
    ),
)
RUNNING = replace(
    STOPPED,
    running=True,
    eta_s=27.3,
    silent_s=2.4,
    next=("nothing: it goes on by itself", "runner status plans/docs.yaml    looks again"),
)
LONG = "db-cluster-7.prod.eu-central-1.internal.example.com:5432/consolidated/public.documents"
FAR = replace(DRY_RUN, source=replace(SOURCE, place=f"/srv/{LONG}"),
              target=replace(NOWHERE, place=LONG))  # fmt: skip
ROLLBACK = RollbackResult(
    name="docs-chroma-to-pgvector",
    run_id="2026-11-23T10-15",
    done=False,
    action="delete",
    target=TARGET,
    removed=1509,
    kept={"changed since by someone else": (3, ("a", 7, "c\x1b[31m"))},
    next=("runner rollback plans/docs.yaml --yes",),
)

EVIL = "<script>alert(1)</script>|`*_\x1b[31m\n\u202e]](https://evil.example/)&\"'"
HOSTILE = replace(
    FAILED,
    name=EVIL,
    description=EVIL,
    source=replace(SOURCE, place=EVIL, index=EVIL),
    fields=tuple(FieldRow(f"{EVIL}{each}", (EVIL,), EVIL, 1, 2, note=EVIL) for each in range(3)),
    losses=(LossRow(EVIL, EVIL, 1, 2, EVIL, reversible=False),),
    steps=(StepRow(1, EVIL, EVIL, (EVIL,), 1.0),),
    hazards=(HazardRow(EVIL, EVIL, EVIL), HazardRow(EVIL, EVIL)),
    checks=tuple(
        replace(
            each, summary=EVIL, coverage=EVIL, threshold=EVIL, failures=(EVIL,) * 3, advice=EVIL
        )
        for each in FAILED.checks
    ),
    warnings=(Remark(EVIL, EVIL, EVIL),),
    plan_text=EVIL * 10,
    versions={EVIL: EVIL},
    report_path=EVIL,
    next=(EVIL,),
)


def printed(show: Any, *args: Any, width: int = 80, terminal: bool = False, **kwargs: Any) -> str:
    """What *show* prints, without colours."""
    out = io.StringIO()
    console = Console(
        file=out, width=width, highlight=False, force_terminal=terminal, color_system=None
    )
    show(*args, console, **kwargs)
    return out.getvalue()
