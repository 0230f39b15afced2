"""What some records look like, field by field."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from runner import jsonvalues
from runner.jsonvalues import ValueKind, kind_of
from runner.model import Batch, Id

_MOST_DISTINCT = 1000


@dataclass
class FieldSummary:
    """One metadata field over all records that were looked at."""

    records: int = 0
    nulls: int = 0
    kinds: Counter[ValueKind] = field(default_factory=Counter)
    values: set[bytes] | None = field(default_factory=set)

    def add(self, value: Any) -> None:
        """Look at one more value."""
        kind = kind_of(value)
        self.records += 1
        self.nulls += kind is ValueKind.NULL
        self.kinds[kind] += 1
        if self.values is not None:
            try:
                self.values.add(jsonvalues.dumps(value)[:200])
            except TypeError:
                self.values.add(repr(value)[:200].encode("utf-8", "replace"))
            if len(self.values) > _MOST_DISTINCT:
                self.values = None

    @property
    def distinct(self) -> int | None:
        """How many different values; None above 1,000."""
        return None if self.values is None else len(self.values)

    @property
    def kind_words(self) -> tuple[str, ...]:
        """The kinds seen, most frequent first."""
        return tuple(kind.value for kind, _ in self.kinds.most_common())


@dataclass
class Inventory:
    """What the looked-at records hold.

    Attributes:
        records: How many were looked at.
        size_bytes: Vectors, documents and metadata of all of them.
        documents: How many have a document; *longest_document* in characters.
        fields: Metadata field → its summary, in order of first sight.
        ids: ``integer``, ``text`` → how many.
        longest_id_bytes: Of text ids in UTF-8.
    """

    records: int = 0
    size_bytes: int = 0
    documents: int = 0
    longest_document: int = 0
    fields: dict[str, FieldSummary] = field(default_factory=dict)
    ids: Counter[str] = field(default_factory=Counter)
    longest_id_bytes: int = 0

    def add(self, batch: Batch) -> None:
        """Look at some more records."""
        self.records += len(batch)
        self.size_bytes += batch.size_bytes
        for document in batch.documents:
            if document is not None:
                self.documents += 1
                self.longest_document = max(self.longest_document, len(document))
        for found in batch.metadata:
            for name, value in found.items():
                self.fields.setdefault(name, FieldSummary()).add(value)
        for each in batch.ids:
            self.add_id(each)

    def add_id(self, record_id: Id) -> None:
        """Look at one more id."""
        if isinstance(record_id, int):
            self.ids["integer"] += 1
            return
        self.ids["text"] += 1
        size = len(record_id.encode("utf-8", "surrogatepass"))
        self.longest_id_bytes = max(self.longest_id_bytes, size)

    @property
    def average_record_bytes(self) -> int:
        """Mean size of a record, rounded."""
        return round(self.size_bytes / self.records) if self.records else 0


def take_inventory(batches: Iterable[Batch]) -> Inventory:
    """The inventory of all records of *batches*."""
    inventory = Inventory()
    for batch in batches:
        inventory.add(batch)
    return inventory
