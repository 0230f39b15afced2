"""Chunks, of the size that a message carries, as pages of the size that was asked for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from runner.model import Batch, BatchSize, Page

__all__ = ["pages"]


def pages(chunks: Iterator[Batch], batch_size: BatchSize) -> Iterator[Page]:
    """Chunks of any size as pages of at most *batch_size*."""
    held: list[Batch] = []
    records = size = 0
    for chunk in chunks:
        ends = np.cumsum(chunk.record_bytes()) if batch_size.bytes is not None else None
        start = 0
        while start < len(chunk):
            stop = min(len(chunk), start + batch_size.records - records)
            begins = int(ends[start - 1]) if ends is not None and start else 0
            if ends is not None and batch_size.bytes is not None:
                fitting = int(np.searchsorted(ends, begins + batch_size.bytes - size, "right"))
                # A record that is larger than a page comes alone.
                stop = max(min(stop, fitting), start if held else start + 1)
            if stop > start:
                held.append(chunk.take(range(start, stop)) if stop - start < len(chunk) else chunk)
                records += stop - start
                size += int(ends[stop - 1]) - begins if ends is not None else 0
            if records == batch_size.records or stop < len(chunk):
                yield _page(held)
                held, records, size = [], 0, 0
            start = stop
    if held:
        yield _page(held)


def _page(parts: list[Batch]) -> Page:
    batch = Batch.joined(parts)
    return Page(batch, str(batch.ids[-1]))
