"""How source ids and namespaces become the target's, and how the originals come back.

The map is chosen once, from the whole set of source ids and what the target can
hold, before anything is written: the least change that fits.  An id that had to
change is kept in the metadata field ``original_id``; a record that comes back so gets
its original id again, and the way back needs no word in the plan.

Only ids that a runner made are turned back.  A UUID of our own namespace proves that by
itself; of ``42`` beside an ``original_id`` of ``"42"`` nobody could tell, which is why
ids that became text or integers have the map's name in ``runner_id`` as well.

A record is known by its namespace and its id.  Where the target has no namespaces, the plan
names a metadata field that takes them, and ``runner_namespace`` beside it says which field
that is.  If ids of two namespaces would meet there, every record but those of the default
namespace gets the UUID of both.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np

from runner.model import Batch, Id, IdRule, Metadata
from runner.plan.model import IdPolicy

ORIGINAL_ID = "original_id"
"""Where an id that had to change is kept."""
RUNNER_ID = "runner_id"
"""Beside it, ``string`` or ``integer``: the map that made the id, where the id is no proof."""

RUNNER_NAMESPACE = "runner_namespace"
"""The name of the field that holds a record's namespace, where the target has no place for it."""

_NAMESPACE = uuid5(NAMESPACE_URL, "https://pypi.org/project/vector-migration-runner/ids")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_NAMED_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_NUMBER = re.compile(r"0|-?[1-9][0-9]*")
_SAMPLE = 2_000


def uuid_for(record_id: Id, namespace: str = "") -> str:
    """The name-based UUID (version 5, RFC 9562) of an id; ``42`` and ``"42"`` differ.

    That of a *namespace* other than the default one is another's.
    """
    name = f"i:{record_id}" if isinstance(record_id, int) else f"s:{record_id}"
    if namespace:
        name = f"n:{len(namespace)}:{namespace}:{name}"
    digest = hashlib.sha1(
        _NAMESPACE.bytes + name.encode("utf-8", "surrogatepass"), usedforsecurity=False
    ).digest()
    text = digest[:16].hex()
    variant = "89ab"[int(text[16], 16) & 3]
    return f"{text[:8]}-{text[8:12]}-5{text[13:16]}-{variant}{text[17:20]}-{text[20:]}"


@dataclass
class IdCensus:
    """What the whole set of source ids looks like.

    Attributes:
        count: How many there are.
        integers: How many are integers; *lowest* and *highest* of them.
        strings: How many are text.
        uuids: How many of the text ids are canonical UUIDs.
        numbers: How many of the text ids are whole numbers in canonical decimal form;
            *lowest_number* and *highest_number* of them.
        longest_bytes, longest_chars: Of the text ids, in UTF-8 and in characters.
        empty, nul: How many are ``""``, how many hold U+0000.
        beyond_ascii: How many hold more than ASCII.
        named: How many of the UUIDs are of version 5, as those that we make are.
        namespaces: Namespace → how many of them it holds.
        duplicates: Namespace and id of those that occur more than once in their namespace,
            the first ten.
        sample: Namespace and id of some, spread evenly by hash; the same for the same set.
    """

    count: int = 0
    integers: int = 0
    lowest: int = 0
    highest: int = 0
    strings: int = 0
    uuids: int = 0
    numbers: int = 0
    lowest_number: int = 0
    highest_number: int = 0
    longest_bytes: int = 0
    longest_chars: int = 0
    empty: int = 0
    nul: int = 0
    beyond_ascii: int = 0
    named: int = 0
    namespaces: Counter[str] = field(default_factory=Counter)
    duplicates: list[tuple[str, Id]] = field(default_factory=list)
    sample: list[tuple[str, Id]] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """``string``, ``integer``, ``uuid``, ``mixed`` or ``unknown`` (no ids)."""
        if not self.count:
            return "unknown"
        if self.integers == self.count:
            return "integer"
        if self.integers:
            return "mixed"
        return "uuid" if self.uuids == self.count else "string"

    @property
    def may_be_mapped(self) -> bool:
        """False only if no map of ours can have made any of these ids."""
        return bool(self.integers or self.numbers or self.named)

    def add(self, ids: Sequence[Id]) -> None:
        """Look at some more ids."""
        integers = [each for each in ids if isinstance(each, int)]
        if integers:
            low, high = min(integers), max(integers)
            self.lowest = min(self.lowest, low) if self.integers else low
            self.highest = max(self.highest, high) if self.integers else high
            self.integers += len(integers)
        strings = [each for each in ids if isinstance(each, str)]
        if strings:
            self._add_strings(strings)
        self.count += len(ids)

    def _add_strings(self, strings: list[str]) -> None:
        self.strings += len(strings)
        self.longest_bytes = max(
            self.longest_bytes, max(len(each.encode("utf-8", "surrogatepass")) for each in strings)
        )
        self.longest_chars = max(self.longest_chars, max(map(len, strings)))
        self.empty += strings.count("")
        self.nul += sum("\0" in each for each in strings)
        self.beyond_ascii += sum(not each.isascii() for each in strings)
        numbers = [int(each) for each in strings if len(each) < 40 and _NUMBER.fullmatch(each)]
        if numbers:
            low, high = min(numbers), max(numbers)
            self.lowest_number = min(self.lowest_number, low) if self.numbers else low
            self.highest_number = max(self.highest_number, high) if self.numbers else high
            self.numbers += len(numbers)
        uuids = [each for each in strings if _UUID.fullmatch(each)]
        self.uuids += len(uuids)
        self.named += sum(_NAMED_UUID.fullmatch(each) is not None for each in uuids)


def take_census(pages: Callable[[], Iterable[tuple[str, Sequence[Id]]]]) -> IdCensus:
    """Look at every id once; twice if some seem to repeat.  Needs 8 bytes an id.

    Args:
        pages: Gives all namespaces and ids, anew at every call.
    """
    census = IdCensus()
    hashes = array("q")
    spread: list[tuple[bytes, str, Id]] = []
    for namespace, ids in pages():
        census.add(ids)
        census.namespaces[namespace] += len(ids)
        hashes.extend([hash((namespace, type(each), each)) for each in ids])
        spread += [(_spread(each, namespace), namespace, each) for each in ids]
        if len(spread) > 4 * _SAMPLE:
            spread = _first(spread)
    census.sample = [(namespace, each) for _, namespace, each in _first(spread)]
    found = np.sort(np.frombuffer(hashes, dtype=np.int64))
    repeated = np.unique(found[1:][found[1:] == found[:-1]])
    if len(repeated):
        census.duplicates = _repeated(pages(), set(repeated.tolist()))
    return census


def _first(spread: list[tuple[bytes, str, Id]]) -> list[tuple[bytes, str, Id]]:
    return sorted(spread, key=lambda each: each[0])[:_SAMPLE]


def _repeated(
    pages: Iterable[tuple[str, Sequence[Id]]], suspects: set[int]
) -> list[tuple[str, Id]]:
    """Which ids really occur more than once, among those whose hash does; at most ten."""
    seen: set[tuple[str, type, Id]] = set()
    repeated: list[tuple[str, Id]] = []
    for namespace, ids in pages:
        for each in ids:
            key = (namespace, type(each), each)
            if hash(key) in suspects:
                if key in seen:
                    repeated.append((namespace, each))
                    if len(repeated) == 10:
                        return repeated
                seen.add(key)
    return repeated


def _spread(record_id: Id, namespace: str) -> bytes:
    name = repr(record_id).encode("utf-8", "surrogatepass")
    # person: 16 bytes that set the namespaces apart
    person = hashlib.blake2b(namespace.encode(), digest_size=16).digest() if namespace else b""
    return hashlib.blake2b(name, digest_size=8, person=person).digest()


@dataclass(frozen=True)
class IdMap:
    """One way to turn source ids into target ids.

    Attributes:
        kind: ``keep``, ``uuid5``, ``integer``, ``string`` or ``field``.
        field: The metadata field that holds the new id when *kind* is ``field``.
        restore: Whether records that carry their original id get it back first.
        distinct: Whether ids that leave their namespace become UUIDs, since some would meet.
    """

    kind: str = "keep"
    field: str | None = None
    restore: bool = True
    distinct: bool = False

    @property
    def keeps(self) -> bool:
        """Whether ids pass unchanged."""
        return self.kind == "keep" and not self.distinct

    def map(self, record_id: Id, metadata: dict[str, Any] | None = None, left: str = "") -> Id:
        """The target id of one source id.

        Args:
            record_id: The source id.
            metadata: Of the record.
            left: The namespace it had and does not have on the target.

        Raises:
            ValueError: It has none under this map.
        """
        if left and self.distinct:
            return uuid_for(record_id, left)
        match self.kind:
            case "keep":
                return record_id
            case "uuid5":
                return uuid_for(record_id, left)
            case "string":
                return str(record_id)
            case "integer":
                if isinstance(record_id, int):
                    return record_id
                if _NUMBER.fullmatch(record_id):
                    return int(record_id)
                raise ValueError("the id is not a whole number")
            case "field":
                value = (metadata or {}).get(self.field or "")
                if isinstance(value, int | str) and not isinstance(value, bool):
                    return value
                raise ValueError(f"metadata.{self.field} holds no text or whole number")
        raise ValueError(f"unknown id map {self.kind!r}")

    def companions(self, record_id: Id, left: str = "") -> dict[str, Id]:
        """The metadata fields that remember the original of an id that changed."""
        if self.kind in ("string", "integer") and not (left and self.distinct):
            return {ORIGINAL_ID: record_id, RUNNER_ID: self.kind}
        return {ORIGINAL_ID: record_id}

    def describe(self, left: str = "") -> str:
        """What it does, for the loss report; empty for `keep`."""
        if left and (self.distinct or self.kind == "uuid5"):
            return "→ UUID (version 5 of namespace and id)"
        return {
            "keep": "",
            "uuid5": "→ UUID (version 5 of the id)",
            "string": "→ text",
            "integer": "→ integer",
            "field": f"→ the value of {self.field}",
        }[self.kind]


@dataclass(frozen=True)
class NamespaceMap:
    """Where records' namespaces go.

    Attributes:
        field: The metadata field that takes them; None: the target's, of the same names.
        restore: Whether records that carry their namespace in a field return to it first.
    """

    field: str | None = None
    restore: bool = False

    def on_target(self, namespace: str) -> str:
        """The namespace on the target of records of *namespace*."""
        return namespace if self.field is None else ""

    def left(self, namespace: str) -> str:
        """*namespace* if its records do not have it on the target; else empty."""
        return "" if self.field is None else namespace

    def companions(self, namespace: str) -> dict[str, str]:
        """The metadata fields that remember it."""
        if self.field is None or not namespace:
            return {}
        return {self.field: namespace, RUNNER_NAMESPACE: self.field}


SAME_NAMESPACES = NamespaceMap()
"""Every namespace stays what it is."""


def restored(
    batch: Batch, *, ids: bool = True, namespaces: bool = False
) -> list[tuple[Sequence[int], Batch]]:
    """*batch* as it was before a runner changed *ids* and *namespaces*.

    Only what bears proof is turned back.  Where namespaces are not to be, records that carry
    theirs in a field stay as they are, for their ids may be those of others without it.

    Returns:
        One batch a namespace, each with the rows it had.
    """
    has = batch.metadata.may_have_key
    if not ((ids and has(ORIGINAL_ID)) or (namespaces and has(RUNNER_NAMESPACE))):
        return [(range(len(batch)), batch)]
    back = list(batch.ids)
    objects = list(batch.metadata.objects())
    homes: dict[str, list[int]] = {}
    for row, found in enumerate(objects):
        field = _namespace_field(found) if not batch.namespace else None
        home = batch.namespace
        gone: tuple[str, ...] = ()
        if field is not None and namespaces:
            home, gone = found[field], (field, RUNNER_NAMESPACE)
        homes.setdefault(home, []).append(row)
        if ids and (field is None or namespaces):
            companions = _companions_of(back[row], found, home if field else "")
            if companions:
                back[row] = found[ORIGINAL_ID]
                gone += companions
        if gone:
            objects[row] = {key: value for key, value in found.items() if key not in gone}
    batch = batch.with_(ids=back, metadata=Metadata(objects=objects))
    if set(homes) <= {batch.namespace}:
        return [(range(len(batch)), batch)]
    return [(rows, batch.take(rows).with_(namespace=home)) for home, rows in homes.items()]


def _namespace_field(metadata: Mapping[str, Any]) -> str | None:
    """The field in which a runner left the namespace of a record; None if none did."""
    field = metadata.get(RUNNER_NAMESPACE)
    if isinstance(field, str) and isinstance(metadata.get(field), str) and metadata[field]:
        return field
    return None


def _companions_of(now: Id, metadata: Mapping[str, Any], home: str) -> tuple[str, ...]:
    """The fields that a map of ours left with *now*; empty if none made it of the original."""
    original = metadata.get(ORIGINAL_ID)
    if not isinstance(original, int | str) or isinstance(original, bool):
        return ()
    mark = metadata.get(RUNNER_ID)
    if now == uuid_for(original, home):
        return (ORIGINAL_ID,)
    if mark == "string":
        ours = isinstance(now, str) and isinstance(original, int) and now == str(original)
    else:
        ours = (
            mark == "integer"
            and isinstance(now, int)
            and isinstance(original, str)
            and original == str(now)
        )
    return (ORIGINAL_ID, RUNNER_ID) if ours else ()


def choose(
    policy: IdPolicy,
    census: IdCensus,
    rule: IdRule,
    store: str,
    *,
    distinct: bool = False,
    meet_as_text: bool = False,
) -> tuple[IdMap, list[str]]:
    """The id map of a plan and what stands against it.

    Args:
        policy: The plan's ``ids``.
        census: Of all source ids (restored where they carry an original).
        rule: What the target can hold.
        store: The target's name, for messages.
        distinct: See `IdMap`; the census is of ids that have been made so.
        meet_as_text: Whether two ids of the census, as 42 and "42", are the same text.
    """
    if policy.kind == "field":
        return IdMap("field", policy.field, restore=False), []
    if policy.kind != "auto":
        chosen = IdMap(policy.kind, restore=policy.kind != "keep")
        return chosen, _against(chosen, census, rule, store)
    for kind in ("keep", "string", "uuid5"):
        chosen = IdMap(kind, distinct=distinct)
        if kind == "string" and meet_as_text:
            continue
        if not _against(chosen, census, rule, store):
            return chosen, []
    return IdMap(), _against(IdMap(), census, rule, store)


def _against(chosen: IdMap, census: IdCensus, rule: IdRule, store: str) -> list[str]:
    match chosen.kind:
        case "uuid5":
            return [] if rule.strings != "none" else [f"{store} holds no text ids"]
        case "string":
            return _against_strings(census, rule, store, every=True)
        case "integer":
            if census.numbers < census.strings:
                odd = census.strings - census.numbers
                return [f"{odd:,} of {census.count:,} ids are not whole numbers"]
            bounds = [census.lowest, census.highest] if census.integers else []
            if census.numbers:
                bounds += [census.lowest_number, census.highest_number]
            return _against_integers(bounds, rule, store)
    problems = []
    if census.integers:
        problems += _against_integers([census.lowest, census.highest], rule, store)
    if census.strings:
        problems += _against_strings(census, rule, store, every=False)
    return problems


def _against_integers(bounds: list[int], rule: IdRule, store: str) -> list[str]:
    if rule.integers is None:
        return [f"{store} holds no integer ids"]
    low, high = rule.integers
    return [
        f"the id {bound} is outside {low} … {high}, which {store} can hold"
        for bound in sorted(set(bounds))
        if not low <= bound <= high
    ]


def _against_strings(census: IdCensus, rule: IdRule, store: str, *, every: bool) -> list[str]:
    """What stands against text ids; *every*: integer ids are to become text as well."""
    total = census.count if every else census.strings
    if rule.strings == "none":
        return [f"{store} holds no text ids"]
    if rule.strings == "uuid":
        odd = total - census.uuids
        return [f"{odd:,} of {census.count:,} ids are no UUIDs, which {store} needs"] if odd else []
    problems = []
    if rule.max_bytes is not None and census.longest_bytes > rule.max_bytes:
        problems.append(
            f"the longest id has {census.longest_bytes:,} bytes, {store} holds {rule.max_bytes:,}"
        )
    if rule.max_chars is not None and census.longest_chars > rule.max_chars:
        problems.append(
            f"the longest id has {census.longest_chars:,} characters, {store} holds "
            f"{rule.max_chars:,}"
        )
    if census.empty and not rule.empty:
        problems.append(f"an id is empty, which {store} refuses")
    if census.nul and not rule.nul:
        problems.append(f"{census.nul:,} ids hold U+0000, which {store} refuses")
    if census.beyond_ascii and rule.ascii_only:
        problems.append(f"{census.beyond_ascii:,} ids hold more than ASCII, which {store} refuses")
    return problems


def can_hold(record_id: Id, rule: IdRule) -> bool:
    """Whether a store with *rule* holds this one id."""
    if isinstance(record_id, int):
        return rule.integers is not None and rule.integers[0] <= record_id <= rule.integers[1]
    if rule.strings == "none":
        return False
    if rule.strings == "uuid":
        return _UUID.fullmatch(record_id) is not None
    if not record_id:
        return rule.empty
    if "\0" in record_id and not rule.nul:
        return False
    if rule.ascii_only and not record_id.isascii():
        return False
    if rule.max_chars is not None and len(record_id) > rule.max_chars:
        return False
    return rule.max_bytes is None or len(record_id.encode("utf-8", "replace")) <= rule.max_bytes
