"""What moving records to or from Pinecone costs, told before it is spent.

The service bills read and write units (documentation, "Understanding cost"): a fetch one for
ten records, a list one for a page, a query one for each gigabyte of its namespace, an upsert
one for each kilobyte of a request and at least five.  What records take up, and what leaves
the service, is billed besides and not estimated here.
"""

from __future__ import annotations

from dataclasses import dataclass

from runner.model import Finding, Severity, Workload
from runner.stores.pinecone_packing import (
    IDS_A_PAGE,
    LEAST_WRITE_UNITS,
    RECORDS_A_FETCH,
    RECORDS_A_READ_UNIT,
    REQUEST_BYTES,
    REQUEST_RECORDS,
    UPSERT_BYTES_A_UNIT,
)

__all__ = ["Cost", "reading", "unit_findings", "writing"]

_BYTES_A_COMPONENT = 12  # `-0.04838709,`: the shortest decimal of a float32, with its comma
_BYTES_A_RECORD = 80  # id, names of columns, brackets
_LOOKED_AT = 1000  # records by which a run judges what it will meet
_BYTES_A_QUERY_UNIT = 1_000_000_000
# billed is a quarter at least; answers speak of whole units, and those are what is counted here
_LEAST_QUERY_UNITS = 1.0


@dataclass(frozen=True)
class Cost:
    """Requests, read and written units of one part of a run."""

    name: str
    requests: int = 0
    read: float = 0.0
    written: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Both, under the first one's name."""
        return Cost(
            self.name,
            self.requests + other.requests,
            self.read + other.read,
            self.written + other.written,
        )

    def __str__(self) -> str:
        units = [f"{self.read:,.0f} read units"] if self.read else []
        units += [f"{self.written:,.0f} write units"] if self.written else []
        return f"{self.name} {self.requests:,} requests, {' and '.join(units) or 'no units'}"


def writing(work: Workload) -> list[Cost]:
    """Copy into an index, read-back, verify."""
    text = max(0, work.size_bytes - work.records * work.dims * 4)
    sent = text + work.records * (work.dims * _BYTES_A_COMPONENT + _BYTES_A_RECORD)
    a_batch = max(_ceil(sent, work.batches * REQUEST_BYTES) if work.batches else 0, 1)
    requests = max(work.batches * a_batch, _ceil(work.records, REQUEST_RECORDS))
    upserts = Cost(
        "copy",
        requests,
        written=max(_ceil(sent, UPSERT_BYTES_A_UNIT), LEAST_WRITE_UNITS * requests),
    )
    # one record of each request is fetched until it is there, and a search shows that the last
    # one is; then all are counted by their ids
    copy = upserts + Cost("awaited", requests + 1, read=requests + _a_query(work))
    copy += _listing(work.records + (work.held or 0))
    verify = Cost("verify")
    if work.lists_ids:
        verify += _listing(work.records + (work.held or 0))
    verify += _fetching(work.sampled) + _asking(work)
    if work.held is not None:
        # what is there may be replaced: every record is awaited; ids are listed to know them
        copy += _fetching(work.records) + _listing(work.held) + _listing(work.held)
        if work.queries:
            verify += _fetching(work.records + work.held)
    return [copy, Cost("read-back") + _fetching(work.read_back), verify]


def reading(work: Workload) -> list[Cost]:
    """Copy out of an index (its ids, a look at some records, then all), verify."""
    listed, all_of_it = _listing(work.records), _fetching(work.records)
    # a look at the first records and at as many others; ids are listed before each
    looked_at = _fetching(min(work.records, _LOOKED_AT))
    copy = Cost("copy") + listed + listed + looked_at + looked_at + all_of_it
    verify = Cost("verify")
    if work.lists_ids:
        verify += listed
    if work.sampled:
        verify += listed + _fetching(work.sampled)
    if work.queries:
        # the sample is drawn from the ids, and exact answers are known by all vectors
        verify += listed + _fetching(work.queries) + all_of_it
        verify += _fetching(work.queries * (work.k + 1)) + _asking(work)
    return [copy, verify]


def _listing(records: int) -> Cost:
    pages = _ceil(records, IDS_A_PAGE)
    return Cost("list", pages, read=pages)


def _fetching(records: int) -> Cost:
    read = _ceil(records, RECORDS_A_READ_UNIT)
    return Cost("fetch", _ceil(records, RECORDS_A_FETCH), read=read)


def _asking(work: Workload) -> Cost:
    asked = work.queries + 1 if work.queries else 0  # the first one warms
    return Cost("query", asked, read=asked * _a_query(work))


def _a_query(work: Workload) -> float:
    return max(_LEAST_QUERY_UNITS, work.size_bytes / _BYTES_A_QUERY_UNIT)


def unit_findings(costs: list[Cost], most: int | None, side: str) -> list[Finding]:
    """The estimate as a note; as a problem where it is more than the plan's ``max_units``."""
    total = sum(each.read + each.written for each in costs)
    if not total:
        return []
    told = "; ".join(map(str, costs))
    if most is not None and total > most:
        return [
            Finding(
                f"about {total:,.0f} read and write units would be spent ({told}); "
                f"`max_units` is {most:,}",
                "raise it, or spend less: `limit`, `validation.checksum: sample`, "
                "`validation.queries: none`",
                key=f"{side}.max_units",
            )
        ]
    return [
        Finding(
            f"the {side}'s Pinecone bills, by estimate: {told}", severity=Severity.NOTE, key=side
        )
    ]


def _ceil(number: int, by: int) -> int:
    return -(-number // by)
