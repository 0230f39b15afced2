"""Dates: parse_date."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from runner.transform import (
    FieldEffect,
    MetadataTransform,
    TransformArgsError,
    UnfitValueError,
    each_field,
    kind_in_words,
    transform,
)

_DATE = re.compile(r"\d{4}-\d\d-\d\d|\d{8}|\d{4}-?W\d\d-?\d")
_TOO_FINE = re.compile(r"[.,]\d{7}")
_MAIL = re.compile(
    r"(?:[A-Z][a-z]{2}, )?\d{1,2} [A-Z][a-z]{2} \d{4} \d\d:\d\d(?::\d\d)? (?:[+-]\d{4}|GMT|UTC?)"
)
_TIME_DIRECTIVE = re.compile(r"%[HIMSfpXcz]")
_YEAR_DIRECTIVE = re.compile(r"%[YyGcx]")
_MAX_UNIX_S = 253_402_300_800  # the year 10000


@transform("parse_date")
def parse_date(fields: dict[str, str]) -> MetadataTransform:
    """Read dates out of texts: a date becomes ``2024-01-31``, a time ``2024-01-31T10:00:00Z``.

    For each field ``auto`` (ISO 8601 and the dates of e-mail; what could be read in two
    ways, as 03/04/2024, fails), ``unix``, ``unix_ms``, or a format as ``%d.%m.%Y``.  Times
    keep their offset (UTC is ``Z``), and get none if they have none.
    """
    changes = {name: _reader(name, wanted) for name, wanted in fields.items()}
    effects = [FieldEffect(name, note="date as ISO 8601") for name in fields]
    return each_field(changes, effects)


def _reader(name: str, wanted: str) -> Callable[[Any], str]:
    if wanted == "auto":
        return _read_auto
    if wanted in ("unix", "unix_ms"):
        return lambda value: _read_unix(value, 1 if wanted == "unix" else 1000)
    if "%" not in wanted:
        raise TransformArgsError(
            "expected auto, unix, unix_ms, or a format", "write a format as `%d.%m.%Y`", at=(name,)
        )
    if not _YEAR_DIRECTIVE.search(wanted) or "%Z" in wanted:
        raise TransformArgsError(
            "the format has no year, or names a time zone", "offsets are `%z`", at=(name,)
        )
    moment = datetime(2001, 12, 31, 23, 58, 59, 123456, tzinfo=UTC)
    try:
        datetime.strptime(moment.strftime(wanted), wanted)
    except (ValueError, re.error) as error:
        raise TransformArgsError("is not a format that dates can be read by", at=(name,)) from error
    has_time = _TIME_DIRECTIVE.search(wanted.replace("%%", "")) is not None

    def read(value: Any) -> str:
        try:
            found = datetime.strptime(_text(value).strip(), wanted)
        except ValueError as error:
            raise UnfitValueError("is text that does not fit the format") from error
        return _written(found) if has_time else found.date().isoformat()

    return read


def _read_auto(value: Any) -> str:
    text = _text(value).strip()
    if _TOO_FINE.search(text):
        raise UnfitValueError("has a time finer than microseconds")
    try:
        if _MAIL.fullmatch(text):
            return _written(parsedate_to_datetime(text))
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise UnfitValueError("is text that is not a date as ISO 8601 has it") from error
    return found.date().isoformat() if _DATE.fullmatch(text) else _written(found)


def _read_unix(value: Any, units_per_s: int) -> str:
    try:
        number = float(value) if type(value) in (int, float, str) else None
    except (ValueError, OverflowError):
        number = None
    if number is None:
        raise UnfitValueError(f"is {kind_in_words(value)} that is not a number of seconds")
    seconds = number / units_per_s
    if not 0 <= seconds < _MAX_UNIX_S:
        raise UnfitValueError("is not between the years 1970 and 9999")
    return _written(datetime.fromtimestamp(seconds, UTC))


def _text(value: Any) -> str:
    if type(value) is not str:
        raise UnfitValueError(f"is {kind_in_words(value)}, not text")
    return value


def _written(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
