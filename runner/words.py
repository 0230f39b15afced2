"""Numbers, sizes, times and other people's text, as people read them.

Ids, field names and messages come from stores; whatever a terminal would obey
in them, or a reader would not see, is shown escaped.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from runner.errors import Id

__all__ = [
    "about",
    "brief",
    "clean",
    "clock",
    "duration",
    "moment",
    "named",
    "named_list",
    "number",
    "plural",
    "rate",
    "share",
    "shortened",
    "shown",
    "shown_list",
    "shown_value",
    "size",
    "words_of",
]  # fmt: skip

_LONGEST_ID = 60
_LONGEST_VALUE = 60
_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")
_HAIR = "\N{HORIZONTAL ELLIPSIS}"


def shown(identifier: Id, longest: int = _LONGEST_ID) -> str:
    """An id as one unambiguous word: ``42``, ``"doc-1"``, ``"line\\nbreak"``.

    Everything that is not plain text, emoji included, is escaped as Python escapes
    it; more than *longest* characters are cut, and how many there were is said.
    """
    if isinstance(identifier, int):
        return str(identifier)
    text = identifier[: longest + 1].replace("\\", "\\\\").replace('"', '\\"')
    text = "".join(_escaped(each) if _is_picture(each) else each for each in clean(text))
    cut = shortened(text, longest)
    if cut == text:
        return f'"{text}"'
    return f'"{cut}" ({number(len(identifier))} characters)'


def named(namespace: str, identifier: Id) -> str:
    """A record by its id and, but for the default one, its namespace."""
    return (
        f"{shown(identifier)} in namespace {shown(namespace)}" if namespace else shown(identifier)
    )


def named_list(records: Iterable[tuple[str, Id]], most: int = 3) -> str:
    """The first *most* records, namespace and id, and whether there are more."""
    found = list(records)
    more = f" {_HAIR}" if len(found) > most else ""
    return ", ".join(named(*each) for each in found[:most]) + more


def shown_list(identifiers: Iterable[Id], most: int = 3) -> str:
    """The first *most* ids, and whether there are more: ``"a", "b" …``."""
    ids = list(identifiers)
    more = f" {_HAIR}" if len(ids) > most else ""
    return ", ".join(shown(each) for each in ids[:most]) + more


def shown_value(value: Any) -> str:
    """A value of a record in one short line; only for those who asked for values."""
    if isinstance(value, str):
        return shown(value, _LONGEST_VALUE)
    return brief(repr(value), _LONGEST_VALUE)


def clean(text: str, keep: str = "") -> str:
    """*text* with everything invisible or obeyed by terminals escaped.

    That is control characters, ANSI escapes, line breaks, text direction marks and lone
    surrogates; the characters in *keep* stay.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in keep else _escaped(each) for each in text)


def shortened(text: str, longest: int) -> str:
    """*text*, cut with an ellipsis where it is longer than *longest* characters."""
    return text if len(text) <= longest else text[: max(0, longest - 1)] + _HAIR


def brief(text: str, longest: int) -> str:
    """*text*, cleaned and shortened, at the cost of what is shown of it."""
    return shortened(clean(text[: longest + 1]), longest)


def number(count: int | None) -> str:
    """``1,512``; ``unknown`` for None."""
    return "unknown" if count is None else f"{count:,}"


def plural(count: int, word: str, several: str = "") -> str:
    """``1 record``, ``1,512 records``; *several* where an s does not do."""
    return f"{count:,} {word if count == 1 else several or word + 's'}"


def size(size_bytes: float | None) -> str:
    """``512 bytes``, ``3.4 MB``, ``33 MB`` (decimal units); ``unknown`` for None."""
    if size_bytes is None:
        return "unknown"
    amount = float(size_bytes)
    for unit in _UNITS:
        if round(amount) < 1000 or unit == _UNITS[-1]:
            break
        amount /= 1000
    digits = 1 if unit != "bytes" and amount < 9.95 else 0
    return f"{amount:,.{digits}f} {'byte' if (unit, amount) == ('bytes', 1) else unit}"


def rate(per_s: float | None) -> str:
    """``14,210/s``, ``0.4/s``; empty for None."""
    if per_s is None:
        return ""
    return f"{per_s:,.0f}/s" if per_s >= 10 else f"{per_s:.1f}/s"


def duration(seconds: float | None) -> str:
    """``0.3 s``, ``11.8 s``, ``2 min 05 s``, ``1 h 12 min``, ``3 d 4 h``; ``unknown`` for None."""
    if seconds is None:
        return "unknown"
    if seconds < 0.05:
        return "0 s" if seconds <= 0 else "< 0.1 s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def about(seconds: float) -> str:
    """An estimate, without the digits that nobody knows: ``12 s``, ``2 min 05 s``."""
    return f"{seconds:.0f} s" if 9.5 <= seconds < 59.5 else duration(seconds)


def clock(seconds: float) -> str:
    """``0:27``, ``12:05``, ``1:02:03``."""
    whole = max(0, round(seconds))
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02}"
    return f"{whole // 3600}:{whole % 3600 // 60:02}:{whole % 60:02}"


def moment(at: str) -> str:
    """A time in ISO 8601 as people read it: ``2026-11-23 10:15:00 UTC``."""
    try:
        found = datetime.fromisoformat(at)
    except ValueError:
        return clean(at)
    return found.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def share(part: int, whole: int) -> str:
    """``98 %``; never ``100 %`` or ``0 %`` of something that is neither, empty of nothing."""
    if whole <= 0:
        return ""
    if 0 < part < whole:
        percent = round(100 * part / whole)
        return "< 1 %" if percent == 0 else "> 99 %" if percent == 100 else f"{percent} %"
    return f"{round(100 * part / whole)} %"


def words_of(name: str) -> str:
    """A keyword as people say it: ``big_bang`` is ``big bang``."""
    return clean(re.sub(r"[_\s]+", " ", name).strip())


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def _is_picture(character: str) -> bool:
    """Emoji and the like, whose width and look no two terminals agree on."""
    code = ord(character)
    return (
        unicodedata.category(character) == "So"
        or 0x1F000 <= code <= 0x1FAFF
        or 0xFE00 <= code <= 0xFE0F
    )
