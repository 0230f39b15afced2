"""What each store keeps of what records hold: the README's table, made from capabilities.

A cell says what happens by default to a record on its way into the store: the record is
fitted as a run would fit it, and what was done to it is put in a word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from runner.copy.fit import BESIDE, Fitted, Fitting
from runner.model import (
    DEFAULT_VECTOR,
    Batch,
    Capabilities,
    Fidelity,
    Filters,
    IdRule,
    Metadata,
    Metric,
    VectorSpec,
)
from runner.stores import built_in, store_class

YES, NO = "yes", "–"
AS_JSON, AS_BESIDE, REFUSED = "JSON text", "beside", "refused"

_LEGEND = f"""\
*{YES}*: comes back as it was. *{AS_JSON}*: is text there, and `runner_json` names the field.
*{AS_BESIDE}*: is in the JSON text of `runner_fields`. *double*: is a double there, and
`runner_integers` names the field. All three are restored on the way back, and counted in the loss
report; `fields` and `unsupported` choose otherwise. *± n ulp*: may move by so many units in the
last place. *{REFUSED}*: named before the first write. Dates are texts (RFC 3339), bytes are texts
(base64), and places on earth are objects; a store's own types for them are in its own lines."""

_ANY_ID = IdRule()

Cell = Callable[[Capabilities], str]


def markdown() -> str:
    """A column for each store, a row for each thing; ends with a line feed."""
    names = built_in()
    stores = [store_class(name).capabilities for name in names]
    lines = [f"| | {' | '.join(f'`{name}`' for name in names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {label} | {' | '.join(map(cell, stores))} |" for label, cell in _ROWS]
    return "\n".join([*lines, "", _LEGEND]) + "\n"


def fate(can: Capabilities, metadata: dict[str, Any] | None = None, **more: Any) -> str:
    """What becomes of one record, in a word.

    Args:
        can: Of the store that it goes to.
        metadata: Of the record.
        more: Its ``document``; its ``vector`` (None: it has none) and the ``metric``.
    """
    vector = more.get("vector", (0.6, 0.8))
    metric = more.get("metric", Metric.COSINE)
    spec = VectorSpec(2, metric, fidelity=can.metrics[metric])
    present = {} if vector else {DEFAULT_VECTOR: np.zeros(1, np.bool_)}
    batch = Batch(
        ["id"],
        {DEFAULT_VECTOR: np.array([vector or (0, 0)], np.float32)},
        [more.get("document")],
        Metadata.of([metadata]),
        present=present,
    )
    # which ids a store holds has a row of its own
    fitted = Fitting(can, {DEFAULT_VECTOR: spec}, id_rule=_ANY_ID).fit(batch)
    return _word(fitted, can)


def _word(fitted: Fitted, can: Capabilities) -> str:
    if fitted.misfits:
        return REFUSED
    for loss in fitted.losses:
        if loss.what == BESIDE:
            return AS_BESIDE
        if loss.policy == "json":
            return AS_JSON
        if loss.what.startswith("int"):
            return "double"
        if loss.what.startswith("double"):
            return f"± {can.double_ulp} ulp"
        if loss.what.startswith("-0.0"):
            return "0.0"
        return loss.what
    return YES


def _value(value: Any) -> Cell:
    return lambda can: fate(can, {"field": value})


def _each(**values: Any) -> Cell:
    """Of several values: one word if they share their fate, else which has which."""

    def cell(can: Capabilities) -> str:
        fates = {label.replace("_", " "): fate(can, {"field": each}) for label, each in
                 values.items()}  # fmt: skip
        return _grouped(fates)

    return cell


def _keys(keys: Sequence[str]) -> Cell:
    return lambda can: _grouped({f"`{key}`" if key else "empty": fate(can, {key: 1.0}) for key in
                                 keys})  # fmt: skip


def _grouped(fates: dict[str, str]) -> str:
    words = list(dict.fromkeys(fates.values()))
    if len(words) == 1:
        return words[0]
    by_word = {word: [label for label, each in fates.items() if each == word] for word in words}
    by_word.pop(YES, None)
    return "; ".join(f"{', '.join(labels)}: {word}" for word, labels in by_word.items())


def _flag(name: str) -> Cell:
    return lambda can: YES if getattr(can, name) else NO


def _vectors(metric: Metric) -> Cell:
    words = {
        Fidelity.EXACT: YES,
        Fidelity.ROUNDED: "rounded",
        Fidelity.NORMALISED: "length 1, `keep_norm`",
        Fidelity.QUANTISED: "approximations",
    }
    return lambda can: words[can.metrics[metric]] if metric in can.metrics else NO


def _zero(can: Capabilities) -> str:
    by_metric = {each.value: fate(can, vector=(0.0, 0.0), metric=each) for each in can.metrics}
    return _grouped(by_metric)


def _text_ids(can: Capabilities) -> str:
    rule = can.ids
    if rule.strings != "any":
        return {"uuid": "UUIDs", "none": NO}[rule.strings]
    words = ["ASCII"] if rule.ascii_only else []
    words += [f"≤ {rule.max_bytes:,} bytes"] if rule.max_bytes is not None else []
    words += [f"≤ {rule.max_chars:,} characters"] if rule.max_chars is not None else []
    words += [] if rule.empty else ["not empty"]
    words += [] if rule.nul else ["no U+0000"]
    return ", ".join(words) or YES


def _integer_ids(can: Capabilities) -> str:
    if can.ids.integers is None:
        return NO
    low, high = can.ids.integers
    for bits in (64, 63):
        if high == 2**bits - 1:
            return f"{'0' if not low else '−2⁶³'} … 2{'⁶⁴' if bits == 64 else '⁶³'}−1"
    return YES


def _sparse(can: Capabilities) -> str:
    if not can.sparse_vectors:
        return NO
    dim, most = can.max_sparse_dim, can.max_sparse_components
    words = [f"indices < {dim:,}"] if dim is not None else []
    words += [f"≤ {most:,} components"] if most is not None else []
    words += [] if can.sparse_zeros else ["none of them 0"]
    words += [] if can.sparse_empty else ["not empty"]
    return ", ".join(words) or YES


def _filters(can: Capabilities) -> str:
    return {
        Filters.DECLARED: "those asked for",
        Filters.ALWAYS: "all fields",
        Filters.ADJUSTABLE: "all fields, or those asked for",
        Filters.NONE: NO,
    }[can.filters]


def _limit(name: str) -> Cell:
    def cell(can: Capabilities) -> str:
        limit = getattr(can, name)
        return f"≤ {limit:,}" if limit is not None else "no limit"

    return cell


_ROWS: list[tuple[str, Cell]] = [
    ("text ids", _text_ids),
    ("integer ids", _integer_ids),
    ("integer to 2⁵³ · to 64 bits · beyond",
     lambda can: " · ".join(fate(can, {"field": each}) for each in (3, 2**63 - 1, 2**70))),
    ("double", _value(0.1)),
    ("−0.0", _value(-0.0)),
    ("true, false", _value(True)),
    ("null", _value(None)),
    ("text, empty text", _each(text="x", empty="")),
    ("text with U+0000", _value("a\0b")),
    ("date-time", _value("2026-11-25T12:00:00.123456Z")),
    ("bytes", _value("AAECAwQ=")),
    ("place on earth", _value({"lat": 52.5, "lon": 13.4})),
    ("list of text", _value(["a", "b"])),
    ("list of int, of double, of bool", _each(int=[1], double=[0.5], bool=[True])),
    ("mixed list, list with null", _each(mixed=[1, "a"], with_null=["a", None])),
    ("list of lists, of objects", _each(lists=[[1]], objects=[{"a": 1}])),
    ("empty list", _value([])),
    ("object", _value({"a": {"b": 1}})),
    ("empty object", _value({})),
    ("field names in any script", _keys(["ключ"])),
    ("field names with a dot, a space", _keys(["a.b", "a b"])),
    ("field names that some stores reserve", _keys(["", "$ref", "#k", "chroma:x"])),
    ("document", lambda can: YES if can.documents else "as a field"),
    ("document with U+0000", lambda can: fate(can, document="a\0b")),
    ("metadata in bytes", _limit("max_metadata_bytes")),
    ("components of a vector", _limit("max_dim")),
    ("vectors under cosine", _vectors(Metric.COSINE)),
    ("vectors under dot, l2", _vectors(Metric.DOT)),
    ("zero vector", _zero),
    ("record without a vector", lambda can: fate(can, vector=None)),
    ("several dense vectors", _flag("named_vectors")),
    ("sparse vectors", _sparse),
    ("multi-vectors", _flag("multi_vectors")),
    ("namespaces, tenants", _flag("namespaces")),
    ("an id twice", lambda _: REFUSED),
    ("filter indexes", _filters),
]  # fmt: skip
