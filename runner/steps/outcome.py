"""Makes results out of a journal: what `run`, `resume`, `verify` and `report` return."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
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
    verdict_of,
)
from runner.steps.compile import loss_rows, step_rows
from runner.steps.model import Check, Step, spec_from_json
from runner.stores.base import Store

_PACKAGES = {
    "chroma": ["chromadb"],
    "faiss": ["faiss-cpu"],
    "files": ["pyarrow"],
    "pgvector": ["psycopg2-binary"],
    "pinecone": ["pinecone"],
    "qdrant": ["qdrant-client", "qdrant-edge-py"],
}
_MOST_POINTS = 300


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


def result_of(
    journal: Journal,
    steps: tuple[Step, ...],
    *,
    command: str,
    report: Path | None,
    next_acts: tuple[str, ...],
    checks: tuple[CheckResult, ...] | None = None,
    target: Side | None = None,
    show_values: bool,
) -> RunResult:
    """The whole result of a run, out of its journal.

    Args:
        journal: The run's.
        steps: The run's.
        command: ``run``, ``resume`` or ``verify``.
        report: The HTML report, if there is one.
        next_acts: What a person should do next.
        checks: In place of those the journal holds.
        target: In place of what the journal says of the target.
        show_values: Whether to hold the values that the checks kept.
    """
    totals = journal.totals()
    seconds = journal.step_seconds()
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
        seconds=sum(seconds.values()) + journal.fact("preflight_seconds", 0.0),
        resumed=journal.fact("resumed", 0),
        source=Side(**journal.fact("source")),
        target=target or Side(**journal.fact("target")),
        records=totals.records,
        size_bytes=totals.size_bytes,
        dead_letters=totals.dead_letters,
        retries=journal.fact("retries", 0),
        fields=tuple(_field(each) for each in journal.fact("fields", [])),
        losses=tuple(losses),
        steps=tuple(step_rows(steps, seconds)),
        hazards=tuple(HazardRow(**each) for each in journal.fact("hazards", [])),
        checks=checks,
        throughput=tuple(_points(journal)),
        warnings=(*warnings_of(journal), *_source_remarks(journal, command)),
        plan_text=journal.fact("plan_text", ""),
        fingerprint=journal.fact("fingerprint"),
        target_digest=target_digest(journal),
        audit_head=journal.audit_head,
        versions=journal.fact("versions", {}),
        report_path=shown_path(report) if report is not None else "",
        next=next_acts,
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


def shown_path(path: Path) -> str:
    """*path* relative to the working folder where it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
