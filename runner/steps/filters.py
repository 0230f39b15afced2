"""Which metadata fields get a filter index on the target (plan key ``target.filter_indexes``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from runner.copy.fit import COMPANIONS
from runner.copy.ids import ORIGINAL_ID, RUNNER_ID, RUNNER_NAMESPACE
from runner.jsonvalues import ValueKind
from runner.model import Capabilities, CollectionSpec, FilterKind, Filters, Finding, Severity
from runner.plan.model import PlanDocument
from runner.steps.inventory import FieldSummary, Inventory
from runner.transform import FieldEffect
from runner.words import shown_list

_INTEGERS = {ValueKind.INT, ValueKind.BIG_INT, ValueKind.LIST_INT}
_NUMBERS = _INTEGERS | {ValueKind.FLOAT, ValueKind.LIST_FLOAT}
_KINDS = (
    ({ValueKind.STRING, ValueKind.LIST_STRING}, FilterKind.KEYWORD),
    ({ValueKind.BOOL, ValueKind.LIST_BOOL}, FilterKind.BOOL),
    (_INTEGERS, FilterKind.INTEGER),
    (_NUMBERS, FilterKind.FLOAT),
)
_NOTHING = {ValueKind.NULL, ValueKind.LIST_EMPTY}
_OWN = COMPANIONS | {ORIGINAL_ID, RUNNER_ID, RUNNER_NAMESPACE}
"""What a runner put beside the fields of records: nobody filters by them unless they say so."""
_KEY = "target.filter_indexes"


@dataclass(frozen=True)
class ChosenFilters:
    """What becomes of the source's filter indexes.

    Attributes:
        made: Target field → what its index compares; None where the target is left to do as it
            always does.
        findings: What is wrong with the choice, and what is left without an index.
    """

    made: Mapping[str, FilterKind] | None = None
    findings: Sequence[Finding] = field(default_factory=tuple)


def choose_filters(
    document: PlanDocument,
    source: tuple[CollectionSpec, Capabilities],
    target: Capabilities,
    inventories: tuple[Inventory, Inventory],
    effects: Sequence[FieldEffect],
) -> ChosenFilters:
    """The filter indexes of a collection that is to be made.

    Args:
        document: The plan.
        source: What is read, and what its store can do.
        target: What the target's store can do.
        inventories: Of the sample as it is, and as it would be written.
        effects: What the transforms say they do to fields.
    """
    if target.filters is Filters.ALWAYS:
        return ChosenFilters()
    after = inventories[1]
    has = _carried(source, inventories, effects)
    asked = document.target.options.get("filter_indexes")
    findings: list[Finding] = []
    made: dict[str, FilterKind] | None = None
    if asked == "auto":
        made = has
    elif asked is not None:
        made = {}
        for name in asked:
            given = asked[name] if isinstance(asked, dict) else ""
            kind = FilterKind(given) if given else has.get(name) or _kind(after.fields.get(name))
            if kind is None and (policy := document.fields.get(name)) and policy.type:
                # a type of the target's own: it knows what to do with values that are not of it
                kind = _main_kind(after.fields.get(name))
            if kind is None:
                findings.append(_unknown(name, after))
            else:
                made[name] = kind
    kept = made is None and source[0].filterable is not None and _same(document)
    kept |= made is None and target.filters is Filters.ADJUSTABLE
    without = [] if kept else [name for name in has if name not in (made or {})]
    if without:
        findings.append(_left_without(without, source[1], target))
    return ChosenFilters(made, tuple(findings))


def _same(document: PlanDocument) -> bool:
    return document.source.store == document.target.store


def _carried(
    source: tuple[CollectionSpec, Capabilities],
    inventories: tuple[Inventory, Inventory],
    effects: Sequence[FieldEffect],
) -> dict[str, FilterKind]:
    """The fields that the source finds by an index, by their names on the target."""
    spec, can = source
    before, after = inventories
    declared = spec.filterable or {}
    there = before.fields if can.filters is Filters.ALWAYS else declared
    names = [each for each in there if each not in _OWN]
    becomes = {each.field: each.becomes for each in effects if each.field and each.becomes}
    found = {}
    for name in names:
        arrived = name if name in after.fields else becomes.get(name, name)
        kind = declared.get(name) or _kind(after.fields.get(arrived))
        # a field that no record of the sample has may still be one that others have
        if kind is not None and (arrived in after.fields or name not in before.fields):
            found[arrived] = kind
    return found


def _kind(summary: FieldSummary | None) -> FilterKind | None:
    """What an index over these values compares; None where they are of several kinds, or of
    one that nobody filters by.
    """
    seen = set(summary.kinds) - _NOTHING if summary is not None else set()
    return next((kind for kinds, kind in _KINDS if seen and seen <= kinds), None)


def _main_kind(summary: FieldSummary | None) -> FilterKind | None:
    """What an index compares that most of these values fit; None where none does."""
    seen = summary.kinds if summary is not None else {}
    most, kind = max(
        ((sum(seen.get(each, 0) for each in kinds), kind) for kinds, kind in _KINDS),
        key=lambda pair: pair[0],
    )
    return kind if most else None


def _unknown(name: str, after: Inventory) -> Finding:
    summary = after.fields.get(name)
    if summary is None:
        there = shown_list(sorted(after.fields)) or "none"
        what = f"no record that was looked at has {name} on the target; the fields there: {there}"
        hint = f"correct the name, or say what it holds: `filter_indexes: {{{name}: keyword}}`"
        return Finding(what, hint, key=_KEY)
    words = ", ".join(summary.kind_words)
    # an object is a place where it can be found at all
    kinds = [FilterKind.GEO] if ValueKind.OBJECT in summary.kinds else []
    kinds += dict.fromkeys(
        kind
        for each in summary.kinds
        if (kind := next((kind for held, kind in _KINDS if each in held), None))
    )
    either = " or ".join(
        f"`filter_indexes: {{{name}: {kind}}}`" for kind in kinds or [FilterKind.KEYWORD]
    )
    hint = f"leave it out, or say what to compare: {either}"
    return Finding(f"{name} holds {words}; an index needs values of one kind", hint, key=_KEY)


def _left_without(names: Sequence[str], source: Capabilities, target: Capabilities) -> Finding:
    """Lost where somebody declared them; no more than to be known where a store has them all."""
    what = (
        f"the source filters by an index on {shown_list(sorted(names), 20)}; the target would not"
    )
    hint = ""
    if target.filters is not Filters.NONE:
        hint = "`target.filter_indexes: auto` makes them, a list makes some"
    lost = source.filters is Filters.DECLARED
    return Finding(what, hint, Severity.WARNING if lost else Severity.NOTE, key=_KEY)
