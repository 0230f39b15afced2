"""What commands found and did, as plain values.

Every screen, Markdown page, JSON document and HTML report is made from these, and
library calls return them.  They hold ids and field names; values only where the
user asked for them.  Nothing in here is a secret.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any, TypeVar, cast

from runner.errors import Id

T = TypeVar("T")


class Verdict(StrEnum):
    """How a check, or a whole run, ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"  # not asked for, or nothing to compare; of a run: nothing was checked


@dataclass(frozen=True)
class Side:
    """One end of a migration, for reading.

    Attributes:
        store: ``chroma``, ``pgvector`` …
        place: Host and collection or path, without secrets.
        records: How many records it held when it was looked at; None if it does not exist.
        dim: Components of its vectors; None if unknown.
        metric: ``cosine``, ``dot``, ``l2``; empty if unknown.
        state: One phrase: ``exists``, ``does not exist, will be created`` …
        index: The search index, in words; empty if unknown.
        storage_bytes: What it takes up in its store; None if the store does not say.
        namespaces: In how many namespaces it lies; None if its store has none.
    """

    store: str
    place: str
    records: int | None = None
    dim: int | None = None
    metric: str = ""
    state: str = ""
    index: str = ""
    storage_bytes: int | None = None
    namespaces: int | None = None


@dataclass(frozen=True)
class FieldRow:
    """One metadata field on its way from source to target.

    Attributes:
        name: Its name in the source; empty for a field that a transform adds.
        kinds: The kinds of value seen, most frequent first.
        becomes: What it is called, or what type it has, on the target; empty if unchanged.
        records: In how many of the looked-at records it occurs.
        looked_at: How many records were looked at.
        nulls: In how many of them it is null.
        distinct: How many different values were seen; None above 1,000.
        note: ``kept``, ``renamed``, ``dropped by the plan``, ``31 are not numbers → fail`` …
    """

    name: str
    kinds: tuple[str, ...]
    becomes: str = ""
    records: int = 0
    looked_at: int = 0
    nulls: int = 0
    distinct: int | None = None
    note: str = "kept"


@dataclass(frozen=True)
class LossRow:
    """Something that does not arrive exactly as it left.

    Attributes:
        field: The metadata field, or ``vector``, ``id``, ``document``.
        what: What happens: ``list of objects → JSON text``.
        records: In how many records; None if unknown.
        looked_at: Out of how many looked at; equal to the whole for a finished run.
        policy: The plan's policy that decided, ``transforms`` for what these did, ``store`` for
            the store's own nature, or ``restored by the runner``.
        reversible: Whether the way back restores it.
    """

    field: str
    what: str
    records: int | None
    looked_at: int
    policy: str
    reversible: bool


@dataclass(frozen=True)
class StepRow:
    """One compiled step.

    Attributes:
        number: 1-based.
        kind: ``create``, ``copy``, ``index``, ``check``, ``swap`` …
        text: What it will do, in one sentence.
        hazards: Names of the hazards it carries.
        seconds: How long it took; None before it ran.
    """

    number: int
    kind: str
    text: str
    hazards: tuple[str, ...] = ()
    seconds: float | None = None


@dataclass(frozen=True)
class HazardRow:
    """One hazard.

    Attributes:
        name: Of the closed list.
        why: What would happen.
        allowed_by: ``plan``, ``--allow`` with the user's name, or empty if not allowed.
    """

    name: str
    why: str
    allowed_by: str = ""


@dataclass(frozen=True)
class Remark:
    """A problem or warning.

    Attributes:
        place: ``file:line:column: path`` or empty.
        what: What was found.
        hint: What to do; may be empty.
    """

    place: str
    what: str
    hint: str = ""


@dataclass(frozen=True)
class Estimate:
    """What a run would take.

    Attributes:
        records, size_bytes, batches: In all.
        seconds: None if no rate is known.
        read_per_s: Measured on the sample, records a second.
        write_per_s: From an earlier run, or assumed for this kind of store.
        write_source: ``assumed``, or ``run <id>`` it was measured in.
    """

    records: int
    size_bytes: int
    batches: int
    seconds: float | None
    read_per_s: float | None
    write_per_s: float | None
    write_source: str = "assumed"


@dataclass(frozen=True)
class DryRunResult:
    """What `run --dry-run` found.  Nothing was written anywhere.

    `instead` is what `run` would do in place of these steps, because of a run that there is.
    """

    name: str
    strategy: str
    description: str
    source: Side
    target: Side
    fields: tuple[FieldRow, ...]
    losses: tuple[LossRow, ...]
    steps: tuple[StepRow, ...]
    thresholds: tuple[str, ...]
    estimate: Estimate
    hazards: tuple[HazardRow, ...]
    problems: tuple[Remark, ...]
    warnings: tuple[Remark, ...]
    notes: tuple[Remark, ...]
    sampled: int
    fingerprint: str
    exit_code: int
    instead: str = ""


@dataclass(frozen=True)
class CheckResult:
    """One check and its evidence.

    Attributes:
        name: ``count``, ``shape``, ``ids``, ``checksum``, ``metadata``, ``queries``,
            ``dead letters``, ``audit``; of one of several vectors ``queries: title``.
        verdict: Whether the threshold was met.
        summary: One line of evidence: ``1,512 = 1,512``.
        coverage: What was looked at: ``all compared``, ``at most 0.3 % wrong (95 %)``.
        threshold: What the plan asked for, in words.
        failures: Ids, or queries, that are wrong, each with how; the first 100.
        values: For each failure what was found and what was expected, cut short; empty
            unless somebody asked for values.
        advice: A likely cause and what to look at; may be empty.
        evidence: Everything else as JSON values; for ``queries``:
            ``recall_source``, ``recall_target``, ``overlap`` (lists, one number a query),
            ``recall_source_mean``, ``recall_target_mean``, ``overlap_mean``,
            ``lower_bound``, ``k``, ``vector``, ``score_difference``,
            ``latency_source_ms``, ``latency_target_ms`` (lists),
            ``worst`` (list of ``{"query", "found", "k"}``).
    """

    name: str
    verdict: Verdict
    summary: str
    coverage: str = ""
    threshold: str = ""
    failures: tuple[str, ...] = ()
    advice: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    values: tuple[str, ...] = ()


_OF_RECORDS = {"count", "ids", "checksum", "metadata", "queries"}


def verdict_of(checks: Iterable[CheckResult]) -> Verdict:
    """Failed if any check failed; skipped if none looked at the records in the target."""
    verdicts = [(each.name.partition(":")[0], each.verdict) for each in checks]
    if any(verdict is Verdict.FAILED for _, verdict in verdicts):
        return Verdict.FAILED
    looked = any(name in _OF_RECORDS and each is Verdict.PASSED for name, each in verdicts)
    return Verdict.PASSED if looked else Verdict.SKIPPED


@dataclass(frozen=True)
class Sample:
    """One point of the throughput chart.

    Attributes:
        at_s: Seconds since the copy began.
        records: Copied until then.
        size_bytes: Copied until then.
    """

    at_s: float
    records: int
    size_bytes: int


@dataclass(frozen=True)
class RunResult:
    """What a run, a resume or a verify did and proved.

    Attributes:
        name, strategy, description: The plan's.
        run_id: Names the folder under the state folder.
        verdict: Over all checks.
        started_at: ISO 8601, UTC.
        seconds: Wall time of the whole run, all its parts added up when it was resumed.
        resumed: How often it went on after a stop.
        source, target: Both ends as they are now.
        records: Records in the target that this run wrote.
        size_bytes: Their vectors, documents and metadata.
        dead_letters: Records set aside.
        retries: Requests that were repeated after a transient error.
        fields, losses, steps, hazards, checks: As named.
        throughput: Points over time.
        warnings: What else a person should know.
        plan_text: The plan's YAML.
        fingerprint: Of the plan.
        target_digest: Hex digest over all written records, the same for the same records.
        audit_head: The last hash of the audit chain.
        versions: Package → version.
        report_path: The HTML report, relative to the working folder; empty if none.
        next: What to do next, one command or sentence each.
        command: ``run``, ``resume`` or ``verify``.
        finished_at: ISO 8601, UTC; empty while the run is not finished.
        repeated: Whether this is what an earlier command came to, and nothing was done now.
        part: Whether only a part of the source was asked for.
    """

    name: str
    strategy: str
    description: str
    run_id: str
    verdict: Verdict
    started_at: str
    seconds: float
    resumed: int
    source: Side
    target: Side
    records: int
    size_bytes: int
    dead_letters: int
    retries: int
    fields: tuple[FieldRow, ...]
    losses: tuple[LossRow, ...]
    steps: tuple[StepRow, ...]
    hazards: tuple[HazardRow, ...]
    checks: tuple[CheckResult, ...]
    throughput: tuple[Sample, ...]
    warnings: tuple[Remark, ...]
    plan_text: str
    fingerprint: str
    target_digest: str
    audit_head: str
    versions: Mapping[str, str]
    report_path: str
    next: tuple[str, ...]
    command: str = "run"
    finished_at: str = ""
    repeated: bool = False
    part: bool = False

    @property
    def headline(self) -> str:
        """The verdict in words, with what keeps it from being the whole truth."""
        word = (
            "DONE, nothing was checked"
            if self.verdict is Verdict.SKIPPED
            else (self.verdict.value.upper())
        )
        return f"{word}, only a part was copied" if self.part else word

    @property
    def exit_code(self) -> int:
        """7 if a check failed, else 0."""
        return 7 if self.verdict is Verdict.FAILED else 0


@dataclass(frozen=True)
class InspectedSide:
    """What `inspect` found at one end."""

    side: str
    about: Side
    vectors: Mapping[str, str]
    fields: tuple[FieldRow, ...]
    looked_at: int
    id_kinds: Mapping[str, int]
    longest_id_bytes: int
    documents: int
    longest_document: int
    average_record_bytes: int
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True)
class InspectResult:
    """What `inspect` found."""

    name: str
    sides: tuple[InspectedSide, ...]
    exit_code: int = 0
    next: tuple[str, ...] = ()


@dataclass(frozen=True)
class StatusResult:
    """How a plan's newest run stands, read from its journal.

    Attributes:
        phase: The step it is in, or ``finished``, ``rolled back``,
            ``left behind``, ``never run``.
        running: Whether a runner holds the lock now.
        seconds: At work so far, all parts of the run added up.
        rate_per_s: Records a second: of late if it is running, else on average.
        eta_s: How long the copy will take yet, if it is running.
        started_at, updated_at: When it began, and when it last gave a sign; ISO 8601.
        silent_s: Seconds since that sign; None if the run has ended.
    """

    name: str
    run_id: str
    phase: str
    running: bool
    records: int
    total: int | None
    size_bytes: int
    seconds: float
    rate_per_s: float | None
    dead_letters: int
    retries: int
    verdict: Verdict | None
    started_at: str
    updated_at: str
    history: tuple[str, ...] = ()
    next: tuple[str, ...] = ()
    exit_code: int = 0
    eta_s: float | None = None
    silent_s: float | None = None

    @property
    def unfinished(self) -> bool:
        """Whether there is a run that can be gone on with."""
        return self.phase not in ("never run", "finished", "rolled back", "left behind")


@dataclass(frozen=True)
class RollbackResult:
    """What a rollback, or a `finalise`, would do, or did.

    Attributes:
        done: False for the preview.
        action: ``drop`` the collection, ``delete`` this run's records, ``swap back``,
            ``unmark`` (nothing was written but the mark) or ``nothing``.
        removed: Records of this run that are (to be) removed.
        kept: Records that stay, with the reason and the first ids of each kind.
        command: ``rollback`` or ``finalise``.
        cannot_tell: Which changes that others made to what goes cannot be seen; may be empty.
    """

    name: str
    run_id: str
    done: bool
    action: str
    target: Side
    removed: int
    kept: Mapping[str, tuple[int, tuple[Id, ...]]] = field(default_factory=dict)
    cannot_tell: str = ""
    next: tuple[str, ...] = ()
    exit_code: int = 0
    command: str = "rollback"


@dataclass(frozen=True)
class NamedResult:
    """What a command found or did about one source of several."""

    source: str
    result: DryRunResult | RunResult | InspectResult | StatusResult | RollbackResult


@dataclass(frozen=True)
class SeveralResult:
    """What a command found or did about a plan with several sources.

    Attributes:
        command: ``dry run``, ``run``, ``resume``, ``verify``, ``report``, ``inspect``,
            ``status`` or ``rollback``.
        parts: One for each source, in order.
        verdict: Over all of them; None where there is none to give.
        problems: What stands between the sources.
        action: Of a rollback: ``nothing`` if there is nothing to take back.
        exit_code: The worst of all.
    """

    name: str
    command: str
    description: str
    parts: tuple[NamedResult, ...]
    verdict: Verdict | None = None
    problems: tuple[Remark, ...] = ()
    action: str = ""
    next: tuple[str, ...] = ()
    exit_code: int = 0

    @property
    def statuses(self) -> list[StatusResult]:
        """How each source's newest run stands, where that is what was asked."""
        return [each.result for each in self.parts if isinstance(each.result, StatusResult)]

    @property
    def unfinished(self) -> bool:
        """Whether a source is yet to be copied, and others are or were begun."""
        phases = [each.phase for each in self.statuses]
        begun = [each.unfinished or each.phase == "finished" for each in self.statuses]
        return any(begun) and set(phases) != {"finished"}

    @property
    def records(self) -> int:
        """How many records were copied, of all sources."""
        return sum(each.records for each in self.statuses if each.phase != "rolled back")

    @property
    def total(self) -> int | None:
        """How many there are; None where a source was not looked at yet."""
        totals = [each.total for each in self.statuses]
        return None if None in totals else sum(each for each in totals if each is not None)


_OURS = frozenset(
    {
        "action", "audit_head", "command", "exit_code", "finished_at", "fingerprint", "hash",
        "history", "kind", "left_behind", "metric", "name", "next", "phase", "plan", "plan_text",
        "report_path", "run", "run_id", "started_at", "step", "store", "strategy",
        "target_digest", "updated_at", "verdict", "versions",
    }
)  # fmt: skip
"""What we make ourselves, or the plan's own words: a password ``docs`` is no reason to give
the plan ``docs.yaml`` another name."""


def redacted(value: T, text: Callable[[str], str]) -> T:
    """*value* with *text* applied to all that it says, in results and in JSON values alike.

    Names of keys, enums, and what we make ourselves (hashes, times, commands to repeat, which
    were made without secrets) stay.
    """
    return cast(T, _redacted(value, text))


def _redacted(value: Any, text: Callable[[str], str]) -> Any:
    if isinstance(value, Enum):
        return value
    if isinstance(value, str):
        return text(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        told = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
        return dataclasses.replace(value, **_redacted(told, text))
    if isinstance(value, Mapping):
        return {key: each if key in _OURS else _redacted(each, text) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_redacted(each, text) for each in value)
    return value


def to_json(value: Any) -> Any:
    """Any result as JSON values: dataclasses become objects, enums their words."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {
            each.name: to_json(getattr(value, each.name)) for each in dataclasses.fields(value)
        }
        if hasattr(value, "exit_code"):
            found["exit_code"] = value.exit_code
        return found
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): to_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(each) for each in value]
    return value
