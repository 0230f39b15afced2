"""Makes results out of a journal: what `run`, `resume`, `verify`, `report` and `status` return."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from runner import __version__
from runner.checks.digest import SetDigest, id_digests
from runner.checks.evidence import result_from
from runner.copy.journal import Journal
from runner.model import CollectionSpec, Endpoint
from runner.results import (
    CheckResult,
    FieldRow,
    HazardRow,
    Remark,
    RunResult,
    Sample,
    Side,
    StatusResult,
    Verdict,
    verdict_of,
)
from runner.steps.compile import loss_rows, step_rows
from runner.steps.loaded import LoadedPlan
from runner.steps.model import Check, Step, spec_from_json
from runner.steps.state import RunFolder
from runner.stores.base import Store

_PACKAGES = {
    "chroma": ["chromadb"],
    "faiss": ["faiss-cpu"],
    "files": ["pyarrow"],
    "pgvector": ["psycopg2-binary"],
    "pinecone": ["pinecone"],
    "qdrant": ["qdrant-client", "qdrant-edge-py"],
    "weaviate": ["weaviate-client"],
}
_MOST_POINTS = 300
_RATE_WINDOW_S = 30.0
_ENDED = ("finished", "rolled back", "left behind")


def versions_of(stores: set[str]) -> dict[str, str]:
    """Versions of Python, this package and the clients of *stores*."""
    found = {"python": platform.python_version(), "vector-migration-runner": __version__}
    names = ["numpy"]
    for store in sorted(stores):
        names += _PACKAGES.get(store, [])
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def side_of(
    endpoint: Endpoint, spec: CollectionSpec | None, records: int | None, state: str, store: Store
) -> Side:
    """One end, for reading."""
    place = str(endpoint)
    if place.startswith("/"):
        place = shown_path(Path(place))
    if spec is None:
        return Side(endpoint.store, place, None, None, "", state)
    vectors = list(spec.vectors.values())
    first = vectors[0] if vectors else None
    return Side(
        store=endpoint.store,
        place=place,
        records=records,
        dim=first.dim if first is not None and first.dim else None,
        metric=first.metric.value if first is not None else "",
        state=state,
        index=str(spec.index) if spec.index is not None else "",
        storage_bytes=store.storage_bytes() if records is not None else None,
        namespaces=len(store.namespaces())
        if records is not None and store.capabilities.namespaces
        else None,
    )


def target_digest(journal: Journal) -> str:
    """One digest over every record that the run left; the same for the same records."""
    whole = SetDigest()
    for namespace, ids, digests, _ in journal.written():
        whole.add(id_digests(ids, namespace), digests)
    return whole.hex()


def warnings_of(journal: Journal) -> tuple[Remark, ...]:
    """What a person was told when the run began."""
    return tuple(Remark(**each) for each in journal.fact("warnings", []))


def _source_remarks(journal: Journal, command: str) -> list[Remark]:
    """That the source went on; `verify` has compared with what it holds by now."""
    if command == "verify" or not journal.fact("source_changed", False):
        return []
    return [
        Remark(
            "",
            f"the source {journal.fact('source')['place']} was written to during the run: "
            "records that came, went or changed since it was read are not in the target as "
            "they are now",
            "`runner verify` names those that came or went; to have them, take this run back and "
            "run again while nothing writes there",
        )
    ]


def _moment_remarks(journal: Journal) -> list[Remark]:
    """That the source was read as of several moments, or of none that all of it shares."""
    moments = journal.fact("source_moments", [])
    if len(moments) < 2 and all(moment for moment, _ in moments):
        return []
    said = [
        (f"as of {moment}" if moment else "each range as of when it was begun")
        + (f" ({why})" if why else "")
        for moment, why in moments
    ]
    shown = said if len(said) <= 5 else [*said[:4], f"{len(said) - 5} more", said[-1]]
    return [
        Remark(
            "",
            "the source was not read as of one moment: " + ", then ".join(shown) + "; what was "
            "written there in between is in the target in part",
            "`runner verify` names records that came or went; if the source was written to, and "
            "its records belong together, take this run back and run again without a break",
        )
    ]


def report(plan: LoadedPlan, *, show_values: bool) -> RunResult:
    """The result of the newest run; see `runner.api.Plan.report`."""
    folder, journal = plan.newest_journal("report", read_only=True)
    try:
        return outcome(plan, folder, journal, "run", show_values=show_values)
    finally:
        journal.close()


def outcome(
    plan: LoadedPlan, folder: RunFolder, journal: Journal, command: str, *, show_values: bool
) -> RunResult:
    """What a run has come to by now."""
    verdict = Verdict(journal.fact("verdict", Verdict.SKIPPED.value))
    return result_of(
        journal,
        plan.steps_of(journal, None),
        command=command,
        report=folder.path / "report.html",
        acts=next_acts(plan, journal, verdict),
        show_values=show_values,
    )


def result_of(
    journal: Journal,
    steps: tuple[Step, ...],
    *,
    command: str,
    report: Path | None,
    acts: tuple[str, ...],
    checks: tuple[CheckResult, ...] | None = None,
    target: Side | None = None,
    seconds: float | None = None,
    show_values: bool,
) -> RunResult:
    """The whole result of a run, out of its journal.

    Args:
        journal: The run's.
        steps: The run's.
        command: ``run``, ``resume`` or ``verify``.
        report: The HTML report, if there is one.
        acts: What a person should do next.
        checks: In place of those the journal holds.
        target: In place of what the journal says of the target.
        seconds: What *command* took, in place of what the run's steps did.
        show_values: Whether to hold the values that the checks kept.
    """
    totals = journal.totals()
    by_step = journal.step_seconds()
    if seconds is None:
        seconds = sum(by_step.values()) + journal.fact("preflight_seconds", 0.0)
    if checks is None:
        checks = tuple(result_from(each) for each in journal.fact("checks", []))
    if not show_values:
        checks = tuple(replace(each, values=()) for each in checks)
    specs = {
        side: spec_from_json(found)
        for side, found in (
            ("source", journal.fact("source_spec")),
            ("target", journal.fact("target_spec")),
        )
        if found
    }
    losses = loss_rows(
        journal.losses(),
        totals.read,
        journal.fact("source")["store"],
        journal.fact("target")["store"],
        specs,
    )
    return RunResult(
        name=journal.fact("name"),
        strategy=journal.fact("strategy"),
        description=journal.fact("description", ""),
        run_id=journal.fact("run_id"),
        verdict=verdict_of(checks),
        started_at=journal.fact("started_at"),
        seconds=seconds,
        resumed=journal.fact("resumed", 0),
        source=Side(**journal.fact("source")),
        target=target or Side(**journal.fact("target")),
        records=totals.records,
        size_bytes=totals.size_bytes,
        dead_letters=totals.dead_letters,
        retries=journal.fact("retries", 0),
        fields=tuple(_field(each) for each in journal.fact("fields", [])),
        losses=tuple(losses),
        steps=tuple(step_rows(steps, by_step)),
        hazards=tuple(HazardRow(**each) for each in journal.fact("hazards", [])),
        checks=checks,
        throughput=tuple(_points(journal)),
        warnings=(
            *warnings_of(journal),
            *_source_remarks(journal, command),
            *_moment_remarks(journal),
        ),
        plan_text=journal.fact("plan_text", ""),
        fingerprint=journal.fact("fingerprint"),
        target_digest=target_digest(journal),
        audit_head=journal.audit_head,
        versions=journal.fact("versions", {}),
        report_path=shown_path(report) if report is not None else "",
        next=acts,
        command=command,
        finished_at=journal.fact("finished_at", ""),
        part=any(isinstance(each, Check) and each.limited for each in steps),
    )


def _field(found: Mapping[str, Any]) -> FieldRow:
    return FieldRow(**{**found, "kinds": tuple(found["kinds"])})


def _points(journal: Journal) -> list[Sample]:
    points = journal.throughput()
    every = max(1, len(points) // _MOST_POINTS)
    return [Sample(*each) for each in points[::every]]


def next_acts(
    plan: LoadedPlan, journal: Journal, verdict: Verdict, again: str = "run"
) -> tuple[str, ...]:
    """What to do after a run that came to *verdict*; *again* is the command that checks anew."""
    undo: list[str] = []
    if not journal.fact("finalising", False):
        undo.append(f"{plan.commands.line('rollback')}    undoes this run")
    if verdict is Verdict.FAILED:
        return (
            "look at the failures above; the report has all of them",
            f"{plan.commands.line(again)}    checks again once the cause is mended",
            *undo,
        )
    if verdict is Verdict.SKIPPED:
        act = f"{plan.commands.line('verify')}    compares both ends: nothing was checked yet"
    elif plan.document.limit is not None:
        act = "only a part was copied: undo it, then run without the limit"
    elif again == "run" and journal.fact("source_changed", False):
        verify = plan.commands.line("verify")
        act = f"{verify}    names what came into the source meanwhile, or left it"
    else:
        act = "switch your application's reads to the target"
    if undo and any(each["kind"] == "swap" for each in journal.fact("steps", [])):
        final = plan.commands.line("finalise")
        undo.append(f"{final}    drops the replaced collection for good")
    return (act, *undo)


def status(plan: LoadedPlan) -> StatusResult:
    """How the newest run stands; reads its journal only."""
    newest = plan.state.newest()
    running = plan.state.is_locked()
    if newest is None:
        return _never_run(plan, running)
    journal = Journal.open_existing(newest.journal, read_only=True)
    try:
        return _status_of(plan, newest, journal, running)
    finally:
        journal.close()


def _never_run(plan: LoadedPlan, running: bool) -> StatusResult:
    return StatusResult(
        name=plan.name,
        run_id="",
        phase="never run",
        running=running,
        records=0,
        total=None,
        size_bytes=0,
        seconds=0.0,
        rate_per_s=None,
        dead_letters=0,
        retries=0,
        verdict=None,
        started_at="",
        updated_at="",
        next=(plan.commands.line("run", "--dry-run"), plan.commands.line("run")),
    )


def _status_of(
    plan: LoadedPlan, folder: RunFolder, journal: Journal, running: bool
) -> StatusResult:
    totals = journal.totals()
    verdict = journal.fact("verdict")
    total = journal.fact("records_before")
    seconds = sum(journal.step_seconds().values())
    updated_at = journal.last_audit_time()
    rate = rate_of(journal, totals.records, running=running)
    acts: tuple[str, ...]
    if journal.fact("rolled_back"):
        phase, acts = "rolled back", (plan.commands.line("run"),)
    elif journal.fact("abandoned"):
        phase, acts = "left behind", (plan.commands.line("run"),)
    elif journal.fact("rolling_back"):
        phase = "rolling back"
        acts = () if running else (plan.commands.line("rollback", "--yes"),)
    elif journal.fact("finished", False):
        running = running and not plan.document.part  # another source's run holds the lock
        phase, acts = "finished", (plan.commands.line("report"), plan.commands.line("verify"))
    elif running:
        phase = journal.step_in_progress() or "beginning"
        acts = ("nothing: it goes on by itself", f"{plan.commands.line('status')}    looks again")
        seconds += _seconds_since(journal.step_began_at())
    else:
        phase = journal.step_in_progress() or "beginning"
        seconds += journal.uncounted_seconds()
        acts = (
            f"{plan.commands.line('resume')}    goes on from here",
            f"{plan.commands.line('rollback')}    removes what this run created",
        )
    left = (total or 0) - totals.read
    copying = running and phase == "copy"
    return StatusResult(
        name=plan.name,
        run_id=folder.run_id,
        phase=phase,
        running=running,
        records=totals.records,
        total=total,
        size_bytes=totals.size_bytes,
        seconds=seconds,
        rate_per_s=rate,
        dead_letters=totals.dead_letters,
        retries=journal.fact("retries", 0),
        verdict=Verdict(verdict) if verdict else None,
        started_at=journal.fact("started_at", ""),
        updated_at=updated_at,
        history=tuple(each.run_id for each in plan.state.run_folders()),
        next=acts,
        eta_s=left / rate if copying and rate and left > 0 else None,
        silent_s=None if phase in _ENDED else _seconds_since(updated_at),
    )


def rate_of(journal: Journal, records: int, *, running: bool) -> float | None:
    """Records a second: of the last half minute while it runs, else over the whole copy."""
    points = journal.throughput()
    if running and points:
        last = points[-1]
        first = next(each for each in points if last[0] - each[0] <= _RATE_WINDOW_S)
        if last[0] > first[0]:
            return (last[1] - first[1]) / (last[0] - first[0])
    copied = max(journal.fact("copy_seconds", 0.0), points[-1][0] if points else 0.0)
    return records / copied if copied else None


def _seconds_since(at: str) -> float:
    """Seconds from an ISO 8601 time until now; 0 if there is none."""
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds()) if at else 0.0


def shown_path(path: Path) -> str:
    """*path* relative to the working folder where it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
