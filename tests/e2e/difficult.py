"""Difficult records, as many as one store can hold at all, for the way there and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from runner.copy.ids import can_hold
from runner.jsonvalues import ValueKind
from runner.model import DEFAULT_VECTOR, Batch, Capabilities, Id, IdRule, Metadata, Outcome
from runner.testing import ID_CASES, KEY_CASES, VALUE_CASES, allowed_key, make_ids
from tests.e2e.places import DIM

_MOST_OF_A_CASE = 4


def difficult_for(
    holds: Capabilities, goes_to: Capabilities, rule: IdRule, reserved: frozenset[str]
) -> Batch:
    """Records with every kind of id, key, value, text and vector that a store *holds*.

    The ids are what *rule* allows, the keys are none of those that are *reserved*.  Left out is
    only what the store that they go to declares to refuse in any form: a record
    without a vector, a zero vector, U+0000 in a document.
    """
    ids: list[Id] = [each for case in ID_CASES.values() for each in case if can_hold(each, rule)]
    objects = [*_with_values(holds), *_with_keys(holds, reserved), {}]
    documents = [None, "", "text", "ä 漢字 🙂 é", "x" * 5000, " \n\t", '{"a": 1}']
    if holds.nul_text and goes_to.nul_text:
        documents.append("a\0b")
    vectors = _vectors(holds, goes_to)
    count = max(len(ids), len(objects), len(documents), len(vectors))
    # what has been used up begins again, but ids do not
    ids += make_ids(count - len(ids), rule, start=1_000)
    present = np.array([row != 3 for row in range(count)])
    taken = vectors[np.arange(count) % len(vectors)]
    masked = holds.missing_vector and goes_to.missing_vector
    if masked:
        taken[~present] = 0
    return Batch(
        ids,
        {DEFAULT_VECTOR: taken},
        [documents[row % len(documents)] for row in range(count)],
        Metadata.of([objects[row % len(objects)] for row in range(count)]),
        present={DEFAULT_VECTOR: present} if masked else {},
    )


def _with_values(holds: Capabilities) -> list[dict[str, Any]]:
    kept = [kind for kind in VALUE_CASES if holds.values.get(kind, Outcome.KEPT) is Outcome.KEPT]
    found = [
        # a field for each kind, so that stores that declare types have one for it
        {f"{kind.name.lower()}": VALUE_CASES[kind][row], "row": row}
        for kind in kept
        for row in range(len(VALUE_CASES[kind]))
    ]
    if holds.negative_zero:
        found.append({"float": -0.0})
    if ValueKind.FLOAT in kept:
        found += [{"large": 1e22}, {"large": 1.7976931348623157e308}, {"large": 2.0**53 + 2}]
    if holds.nul_text:
        found.append({"string": "a\0b"})
    found += [{"shared": each} for each in ("text", 1, 2.5, True)]
    return found


def _with_keys(holds: Capabilities, reserved: frozenset[str]) -> list[dict[str, Any]]:
    return [
        {key: f"under {label}"}
        for label, keys in KEY_CASES.items()
        for key in keys
        if allowed_key(key, holds.keys)
        and key not in reserved
        and not ("\0" in key and not holds.nul_text)
    ]


def _vectors(holds: Capabilities, goes_to: Capabilities) -> np.ndarray:
    rng = np.random.default_rng(5)
    ordinary = rng.standard_normal((12, DIM)).astype(np.float32)
    unit = ordinary[:4] / np.linalg.norm(ordinary[:4], axis=1, keepdims=True)
    odd = [ordinary[4:], unit, ordinary[:2] * np.float32(10), ordinary[:2] * np.float32(1e-3)]
    if holds.zero_vector and goes_to.zero_vector:
        odd.append(np.zeros((1, DIM), np.float32))
    return np.concatenate(odd).astype(np.float32)
