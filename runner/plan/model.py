"""A plan, checked and resolved: what its YAML says with every default filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from runner.model import BatchSize
from runner.stores.base import Location


class Hazard(StrEnum):
    """Everything dangerous that a step can do; each must be allowed by name."""

    REPLACE_TARGET = "replace-target"
    OVERWRITE_RECORDS = "overwrite-records"
    LOSSY_FIELDS = "lossy-fields"
    CHANGED_METRIC = "changed-metric"
    INSECURE_CONNECTION = "insecure-connection"
    TOUCH_SOURCE = "touch-source"
    ACTIVATE_TENANTS = "activate-tenants"
    DROP_SOURCE = "drop-source"


class OnError(StrEnum):
    """What happens to a record that a transform cannot handle."""

    FAIL = "fail"  # the run stops
    DEAD_LETTER = "dead_letter"  # the record is set aside, with the reason
    KEEP = "keep"  # the record goes on as this transform found it
    SET_NULL = "set_null"  # the field that could not be computed becomes null


class Unsupported(StrEnum):
    """What happens to a metadata value that the target cannot hold."""

    REFUSE = "refuse"  # the run stops
    FLATTEN = "flatten"  # {"a": {"b": 1}} becomes {"a.b": 1}
    JSON = "json"  # becomes its JSON text, and the record remembers which fields did
    STRINGIFY = "stringify"  # becomes text, for good
    DROP = "drop"


class IfExists(StrEnum):
    """What happens when the target is there already."""

    REFUSE = "refuse"
    APPEND = "append"
    REPLACE = "replace"


@dataclass(frozen=True)
class TransformStep:
    """One entry of ``transforms``.

    Attributes:
        name: ``rename``, ``cast``, ``python`` …
        args: What the plan gives it, as parsed.
        on_error: What happens to a record it cannot handle.
        path: Where it stands in the plan: ``transforms[1]``.
    """

    name: str
    args: Any
    on_error: OnError
    path: str


@dataclass(frozen=True)
class FieldPolicy:
    """What the plan says of one metadata field (plan key ``fields.<name>``).

    Attributes:
        type: The type to give it on the target; None leaves it to the target.
        unsupported: What to do with values the target cannot hold; None for the default.
    """

    type: str | None = None
    unsupported: Unsupported | None = None


@dataclass(frozen=True)
class IdPolicy:
    """How source ids become target ids (plan key ``ids``).

    Attributes:
        kind: ``auto`` (the least change the target can hold), ``keep``, ``uuid5``,
            ``integer``, ``string`` or ``field``.
        field: The metadata field that holds the new id when *kind* is ``field``.
    """

    kind: str = "auto"
    field: str | None = None


@dataclass(frozen=True)
class NamespacePolicy:
    """Where records' namespaces go (plan key ``namespace_to``).

    Attributes:
        kind: ``auto`` (the target's own, of the same names, where it has such), ``namespace``
            (that and nothing else), ``collection`` (one collection for each) or ``field``.
        field: The metadata field that takes them when *kind* is ``field``.
    """

    kind: str = "auto"
    field: str | None = None


@dataclass(frozen=True)
class QueryCheck:
    """The search-quality check (plan key ``validation.queries``).

    Attributes:
        sample: Use this many of the source's own vectors as queries.
        file: Or the vectors of this Parquet file (columns ``id``, ``text``, ``vector``, and
            ``namespace`` where there are several).
        k: How many neighbours each query asks for.
        min_recall_ratio: Recall of the target, as a share of the source's, to reach.
    """

    sample: int | None = 100
    file: Path | None = None
    k: int = 10
    min_recall_ratio: float = 0.99


@dataclass(frozen=True)
class Validation:
    """Which checks decide about a run, and their thresholds (plan key ``validation``).

    Attributes:
        level: The preset the rest was filled in from.
        count: Whether the number of records must match.
        ids: Whether the full sets of ids are compared: written, in the target, in the source.
        checksum: What is read back: ``every_batch``, ``sample`` (every tenth batch), ``none``.
        metadata_sample: How many records are fetched from both sides and compared
            field by field; 0 for none.
        queries: The search-quality check; None for none.
        max_dead_letters: How many records may be set aside before the run counts as failed.
    """

    level: str = "standard"
    count: bool = True
    ids: bool = True
    checksum: str = "every_batch"
    metadata_sample: int = 1000
    queries: QueryCheck | None = QueryCheck()
    max_dead_letters: int = 0


@dataclass(frozen=True)
class PlanDocument:
    """One plan file, loaded.

    Attributes:
        file: The plan's path as the user gave it; for messages.
        path: The same, absolute.
        root: What ``python:`` transforms must lie beneath: the nearest folder with a
            ``.git``, else the plan's own.
        text: The file's text, unchanged (no secrets: literal ones are refused).
        name: The plan's name; names the state folder.
        description: For people.
        source, target: The two sides, resolved; of a plan with several sources, the first.
        parts: Of a plan with ``sources``: one plan for each, in order.
        part: The name of the source that this is the plan of; empty of a whole plan.
        source_path: Where the source stands in the plan.
        add: Metadata fields that every record gets.
        source_namespace: The namespace that all records lie in, whatever the source has; empty
            for those that it has.
        if_exists: What to do about an existing target.
        strategy: ``big_bang``.
        batch_size: How much goes into one batch.
        workers: How many writers, and at most as many readers.
        transforms: In order.
        validation: The checks.
        ids: The id map.
        namespace_to: Where namespaces go.
        fields: Field name → policy.
        unsupported: The policy of fields that are not named in *fields*; None for the default.
        keep_norm: Whether the length of vectors that the target scales is kept.
        allow: Hazards the plan allows.
        limit: Copy at most this many records; None for all.
        state_dir: Where runs are kept, if the plan says so; None for the default.
        positions: Path in the plan → ``(line, column)``, 1-based, of its value.
        secrets: Every secret that was substituted, for redaction.  Never printed.
        unresolved: ``${…}`` references that `lint` found unset and let pass.
    """

    file: str
    path: Path
    root: Path
    text: str
    name: str
    description: str
    source: Location
    target: Location
    if_exists: IfExists = IfExists.REFUSE
    strategy: str = "big_bang"
    batch_size: BatchSize = BatchSize()
    workers: int = 2
    transforms: tuple[TransformStep, ...] = ()
    validation: Validation = Validation()
    ids: IdPolicy = IdPolicy()
    namespace_to: NamespacePolicy = NamespacePolicy()
    fields: Mapping[str, FieldPolicy] = field(default_factory=dict)
    unsupported: Unsupported | None = None
    keep_norm: bool = False
    allow: frozenset[Hazard] = frozenset()
    limit: int | None = None
    state_dir: Path | None = None
    positions: Mapping[str, tuple[int, int]] = field(default_factory=dict, repr=False)
    secrets: frozenset[str] = field(default_factory=frozenset, repr=False)
    unresolved: tuple[str, ...] = ()
    parts: tuple[PlanDocument, ...] = field(default=(), repr=False)
    part: str = ""
    source_path: str = "source"
    add: Mapping[str, Any] = field(default_factory=dict)
    source_namespace: str = ""

    def place(self, path: str) -> str:
        """``file:line:column: path`` of a key of this plan, or of its nearest parent."""
        if path == "source" or path.startswith("source."):
            path = self.source_path + path.removeprefix("source")
        probe = path
        while probe and probe not in self.positions:
            cut = max(probe.rfind("."), probe.rfind("["))
            probe = probe[:cut] if cut > 0 else ""
        if probe in self.positions:
            line, column = self.positions[probe]
            return f"{self.file}:{line}:{column}: {path}"
        return f"{self.file}: {path}" if path else self.file
