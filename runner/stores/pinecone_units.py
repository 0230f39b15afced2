"""What moving records to or from Pinecone costs, told before it is spent.

The service bills read and write units: a fetch one for ten records, a list one for a
page, an upsert one for each kilobyte of a request and at least five.
"""

from __future__ import annotations

from dataclasses import dataclass

from runner.model import Finding, Severity
from runner.stores.pinecone_packing import (
    LEAST_WRITE_UNITS,
    REQUEST_BYTES,
    REQUEST_RECORDS,
    UPSERT_BYTES_A_UNIT,
)

__all__ = ["Cost", "reading", "unit_findings", "writing"]

_BYTES_A_COMPONENT = 12  # `-0.04838709,`: the shortest decimal of a float32, with its comma
_BYTES_A_RECORD = 80  # id, names of columns, brackets
_FETCHED = 100
_RECORDS_A_READ_UNIT = 10
_LISTED = 100
_QUERIES = 100
_BYTES_A_QUERY_UNIT = 1_000_000_000
_LEAST_QUERY_UNITS = 0.25


@dataclass(frozen=True)
class Cost:
    """Requests and units of one part of a run."""

    name: str
    requests: int
    read: int = 0
    written: int = 0

    def __str__(self) -> str:
        units = [f"{self.read:,} read units"] if self.read else []
        units += [f"{self.written:,} write units"] if self.written else []
        return f"{self.name} {self.requests:,} requests, {' and '.join(units) or 'no units'}"


def writing(records: int, size_bytes: int, dim: int) -> list[Cost]:
    """Copy into an index, read-back, verify.

    Args:
        records: How many.
        size_bytes: Of vectors as float32, texts and metadata together.
        dim: Components of a vector.
    """
    if not records:
        return []
    text = max(0, size_bytes - records * dim * 4)
    sent = text + records * (dim * _BYTES_A_COMPONENT + _BYTES_A_RECORD)
    requests = max(_ceil(sent, REQUEST_BYTES), _ceil(records, REQUEST_RECORDS))
    units = max(_ceil(sent, UPSERT_BYTES_A_UNIT), LEAST_WRITE_UNITS * requests)
    # one record of each request is fetched until it is there
    return [
        Cost("copy", 2 * requests, read=requests, written=units),
        _fetching("read-back", records),
        _verifying(records, size_bytes),
    ]


def reading(records: int, size_bytes: int) -> list[Cost]:
    """Copy out of an index (its list of ids, then the records), verify."""
    if not records:
        return []
    fetched = _fetching("copy", records)
    pages = _ceil(records, _LISTED)
    copy = Cost("copy", fetched.requests + pages, read=fetched.read + pages)
    return [copy, _verifying(records, size_bytes)]


def _fetching(name: str, records: int) -> Cost:
    return Cost(name, _ceil(records, _FETCHED), read=_ceil(records, _RECORDS_A_READ_UNIT))


def _verifying(records: int, size_bytes: int) -> Cost:
    """The ids listed twice, a sample of records, and the queries, by the defaults of a plan."""
    sampled = _fetching("verify", min(records, 1000))
    pages = 2 * _ceil(records, _LISTED)
    a_query = max(_LEAST_QUERY_UNITS, size_bytes / _BYTES_A_QUERY_UNIT)
    return Cost(
        "verify",
        sampled.requests + pages + _QUERIES,
        read=sampled.read + pages + _ceil(round(_QUERIES * a_query), 1),
    )


def unit_findings(costs: list[Cost], most: int | None, side: str) -> list[Finding]:
    """The estimate as a note; as a problem where it is more than the plan's ``max_units``."""
    if not costs:
        return []
    total = sum(each.read + each.written for each in costs)
    told = "; ".join(map(str, costs))
    if most is not None and total > most:
        return [
            Finding(
                f"about {total:,} read and write units would be spent ({told}); "
                f"`max_units` is {most:,}",
                "raise it, or move less: `limit`, `validation.checksum: sample`",
                key=f"{side}.max_units",
            )
        ]
    return [
        Finding(f"the {side}'s Pinecone bills, estimated: {told}", severity=Severity.NOTE, key=side)
    ]


def _ceil(number: int, by: int) -> int:
    return -(-number // by)
