"""Dead letters: records that were set aside, whole, so that they can be mended and sent again.

Exported, each is a line of JSON that store ``files`` reads as a source: ``id``, ``vector``,
``document`` and ``metadata`` as they stand in the source, ``namespace`` where it is not the
default one, and under ``dead_letter`` the ``namespace``, the ``step`` that set it aside and
the ``reason``.  What JSON cannot say is
written as text, and ``spelled`` under ``dead_letter`` names the places: ``NaN``,
``Infinity`` and ``-Infinity`` as these words, a lone surrogate as ``\\ud800``, other things
as Python writes them; what nests deeper than JSON writers go is null.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import orjson

from runner import jsonvalues
from runner.model import Batch, FloatArray, Id
from runner.stores.segments import DEAD_LETTER

_DEEPEST = 200
"""orjson writes 254 levels."""


@dataclass(frozen=True)
class DeadLetterRow:
    """One record that was set aside: its source id, where and why.

    Attributes:
        id: In the source.
        namespace: In the source.
        step: ``transforms[1]``, ``ids`` or ``target``.
        reason: Names fields, never a value.
        record: The whole record as the source had it, packed; empty where only a look at
            it was taken.
        value: What a transform could not handle, cut short; for those who ask for values.
    """

    id: Id
    namespace: str
    step: str
    reason: str
    record: bytes = field(default=b"", repr=False)
    value: str = field(default="", repr=False)


def with_records(rows: Sequence[DeadLetterRow], page: Batch) -> list[DeadLetterRow]:
    """*rows*, each with its record of *page*, which is as the source gave it."""
    if not rows:
        return []
    places = {(type(each), each): row for row, each in enumerate(page.ids)}
    return [replace(each, record=_packed(page, places[type(each.id), each.id])) for each in rows]


def line_of(row: DeadLetterRow) -> dict[str, Any]:
    """*row* as one JSON line of the export."""
    record = jsonvalues.loads(zlib.decompress(row.record)) if row.record else {}
    spelled = record.pop("spelled", [])
    about = {
        "namespace": row.namespace,
        "step": row.step,
        "reason": row.reason,
        "spelled": spelled,
    }
    source_id = _text(row.id) if isinstance(row.id, str) else row.id
    place = {"namespace": row.namespace} if row.namespace else {}
    return {"id": source_id, **place, **record, DEAD_LETTER: about}


def id_to_text(record_id: Id) -> str:
    """An id as JSON text that any database holds, lone surrogates included."""
    return json.dumps(record_id)


def id_from_text(text: str) -> Id:
    """The id that `id_to_text` wrote."""
    found: Id = json.loads(text)
    return found


def _packed(page: Batch, row: int) -> bytes:
    spelled: list[str] = []
    record: dict[str, Any] = {}
    # a source gives one vector; what it is called there is the store's affair
    for name, array in list(page.vectors.items())[:1]:
        mask = page.present.get(name)
        if mask is None or mask[row]:
            record["vector"] = _numbers(array[row], spelled)
    document = page.documents[row]
    if document is not None:
        record["document"] = _sayable(document, "document", spelled)
    record["metadata"] = _sayable(page.metadata[row], "metadata", spelled)
    _sayable(page.ids[row], "id", spelled)
    record["spelled"] = spelled
    return zlib.compress(jsonvalues.dumps(record), 1)


def _numbers(vector: FloatArray, spelled: list[str]) -> list[Any]:
    """The shortest numbers that are this vector in float32."""
    numbers: list[Any] = orjson.loads(orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY))
    wrong = np.flatnonzero(~np.isfinite(vector)).tolist()
    for at in wrong:
        numbers[at] = _word_for(float(vector[at]))
    if wrong:
        spelled.append("vector")
    return numbers


def _sayable(value: Any, place: str, spelled: list[str], depth: int = 0) -> Any:
    """*value* as JSON can say it; where that is not the value itself, *spelled* gets its place."""
    match value:
        case None | bool() | int():
            return value
        case float() if math.isfinite(value):
            return value
        case dict() if depth < _DEEPEST:
            return {
                _sayable(key, place, spelled): _sayable(
                    each, f"{place}.{_text(key)}", spelled, depth + 1
                )
                for key, each in value.items()
            }
        case list() if depth < _DEEPEST:
            return [
                _sayable(each, f"{place}[{at}]", spelled, depth + 1)
                for at, each in enumerate(value)
            ]
        case str() if _text(value) == value:
            return value
    if place not in spelled:
        spelled.append(place)
    match value:
        case float():
            return _word_for(value)
        case str():
            return _text(value)
        case dict() | list():
            return None
    return _text(repr(value))


def _word_for(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _text(text: str) -> str:
    """*text*, with every lone surrogate as a backslash, a u and its number."""
    return text.encode("utf-8", "backslashreplace").decode()
