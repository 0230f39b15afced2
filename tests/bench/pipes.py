"""What a pair of stores could do at best: bare loops, alone and joined by a queue.

The bare loops are the clients used as well as we can: binary COPY for pgvector, wire
bytes for Qdrant, ids in sorted chunks for Chroma, columns for Parquet.  They transform
nothing, check nothing and journal nothing.
"""

from __future__ import annotations

import gc
import multiprocessing
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from runner.checks.digest import record_digests
from runner.copy.pipeline import prompt_switches
from runner.model import Batch, BatchSize
from runner.stores import open_store, pinecone_packing
from runner.stores.base import Access, Location, Source, Target

BATCH = BatchSize(1000)
_FORK = multiprocessing.get_context("fork")


def pages(source: Source) -> Iterator[Batch]:
    """Everything in the source, batch by batch."""
    for partition in source.partitions(1):
        for page in source.scan(partition, None, BATCH):
            yield page.batch


def read_alone(location: Location, scratch: Path) -> float:
    """Records a second, only read."""
    with open_store(location, Access.READ, scratch) as source:
        source.count()
        began = time.perf_counter()
        records = sum(len(batch) for batch in pages(source))
        return records / (time.perf_counter() - began)


def write_alone(batches: list[Batch], target: Target, *, read_back: bool) -> float:
    """Records a second, written from memory."""
    began = time.perf_counter()
    for batch in batches:
        _write(target, batch, read_back=read_back)
    return sum(map(len, batches)) / (time.perf_counter() - began)


def _write(target: Target, batch: Batch, *, read_back: bool) -> None:
    target.write(batch, fresh=True)
    if read_back:
        target.fetch(batch.ids)


def two_threads(
    location: Location, scratch: Path, target: Target, *, writers: int, read_back: bool
) -> float:
    """Records a second, one thread reading and *writers* writing."""
    with open_store(location, Access.READ, scratch) as source:
        source.count()
        waiting: queue.Queue[Batch | None] = queue.Queue(maxsize=writers + 1)
        errors: list[BaseException] = []

        def write_all() -> None:
            try:
                while (batch := waiting.get()) is not None:
                    _write(target, batch, read_back=read_back)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=write_all) for _ in range(writers)]
        began = time.perf_counter()
        with target.bulk_load():
            for thread in threads:
                thread.start()
            records = 0
            for batch in pages(source):
                records += len(batch)
                waiting.put(batch)
            for _ in threads:
                waiting.put(None)
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]
        return records / (time.perf_counter() - began)


def two_processes(location: Location, scratch: Path, target: Target, *, read_back: bool) -> float:
    """Records a second, one process reading and this one writing."""
    pipe: multiprocessing.Queue[object] = _FORK.Queue(maxsize=4)
    ready = _FORK.Event()
    go = _FORK.Event()

    def read_all() -> None:
        with open_store(location, Access.READ, scratch) as source:
            source.count()
            ready.set()
            go.wait()
            for batch in pages(source):
                metadata = batch.metadata
                texts = metadata.texts() if metadata.has_texts else metadata.objects()
                pipe.put((batch.ids, batch.vectors, batch.documents, texts, metadata.has_texts))
            pipe.put(None)

    child = _FORK.Process(target=read_all)
    child.start()
    ready.wait()
    began = time.perf_counter()
    go.set()
    records = 0
    with target.bulk_load():
        while (found := pipe.get()) is not None:
            ids, vectors, documents, column, as_texts = found
            batch = Batch(ids, vectors, documents, _metadata(column, as_texts))
            _write(target, batch, read_back=read_back)
            records += len(batch)
    seconds = time.perf_counter() - began
    child.join()
    return records / seconds


def _metadata(column: list, as_texts: bool):  # type: ignore[no-untyped-def, type-arg]
    from runner.model import Metadata

    return Metadata(texts=column) if as_texts else Metadata(objects=column)


def digest_us(batches: list[Batch]) -> float:
    """Microseconds of one core that the digest of one record takes."""
    began = time.perf_counter()
    for batch in batches:
        record_digests(batch)
    return (time.perf_counter() - began) * 1e6 / sum(map(len, batches))


def filled(batches: list[Batch]) -> float:
    """How full Pinecone's full requests are, as a share of the 2 MB that one may have.

    Full are those that another one of the same batch follows.
    """
    layout = pinecone_packing.Layout(batches[0].vector.shape[1])
    sizes: list[int] = []
    for batch in batches:
        records, refused = pinecone_packing.sealed(batch, layout)
        assert not refused
        requests = [*pinecone_packing.packed(records, "")]
        sizes += [sum(each.size_bytes for each in request) for request in requests[:-1]]
    assert sizes, "the batches are too small to fill a request"
    return sum(sizes) / len(sizes) / pinecone_packing.REQUEST_BYTES


def quietly(function: Callable[[], float]) -> float:
    """Run *function* with nothing left over to collect, and threads that take turns promptly."""
    gc.collect()
    with prompt_switches():
        return function()
