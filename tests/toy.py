"""A store in a dictionary of this process that has namespaces, for whole migrations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from runner.errors import StoreError
from runner.model import (
    Batch,
    BatchSize,
    Cursor,
    FloatArray,
    Hits,
    Id,
    Metadata,
    Page,
    Partition,
    Select,
)
from tests.conformance.test_toy import ToyStore, nearest


class NamespacedToy(ToyStore):
    """Records are kept, and sorted, by the JSON text of namespace and id.

    Options: ``collection``; ``namespaces``: ``all`` or a list.
    """

    name = "toy"
    capabilities = replace(ToyStore.capabilities, namespaces=True)

    def _rows(self) -> dict[str, Batch]:
        chosen = self.location.options.get("namespaces", "all")
        return {
            key: row
            for key, row in self.here["rows"].items()
            if chosen == "all" or row.namespace in chosen
        }

    def count(self) -> int:
        return len(self._rows())

    def namespaces(self) -> list[str]:
        chosen = self.location.options.get("namespaces", "all")
        there = {row.namespace for row in self._rows().values()}
        return sorted(there | set(chosen if chosen != "all" else ())) or [""]

    def partitions(self, n: int) -> list[Partition]:
        found = []
        for namespace in self.namespaces():
            keys = sorted(key for key, row in self._rows().items() if row.namespace == namespace)
            cuts = sorted({keys[len(keys) * part // n] for part in range(1, n)}) if keys else []
            for pair in zip([None, *cuts], [*cuts, None], strict=True):
                found.append(Partition(len(found), *pair, namespace))
        return found

    def scan(
        self,
        partition: Partition,
        after: Cursor | None,
        batch_size: BatchSize,
        select: Select = Select.ALL,
    ) -> Iterator[Page]:
        while keys := [
            key
            for key, row in sorted(self._rows().items())
            if row.namespace == partition.namespace
            and (partition.lower or "") <= key < (partition.upper or "~")
            and (after is None or key > after)
        ]:
            sizes = np.cumsum([self.here["rows"][key].size_bytes for key in keys])
            fitting = max(1, int((sizes <= (batch_size.bytes or 2**60)).sum()))
            keys = keys[: min(fitting, batch_size.records)]
            after = keys[-1]
            ids = [json.loads(key)[1] for key in keys]
            yield Page(self.fetch(ids, select, namespace=partition.namespace), after)

    def scan_ids(self, page_size: int = 10_000) -> Iterator[tuple[str, list[Id]]]:
        for partition in self.partitions(1):
            for page in self.scan(partition, None, BatchSize(page_size), Select(0)):
                yield partition.namespace, page.batch.ids

    def fetch(
        self, ids: Sequence[Id], select: Select = Select.ALL, *, namespace: str = ""
    ) -> Batch:
        rows = self._rows()
        there = [rows.get(json.dumps([namespace, each])) for each in ids]
        found = Batch.joined([each for each in there if each]).with_(namespace=namespace)
        nothing: list[None] = [None] * len(found)
        if Select.VECTORS not in select:
            found = found.with_(vectors={}, present={}, sparse={}, multi={})
        if Select.DOCUMENTS not in select:
            found = found.with_(documents=nothing)
        return found if Select.METADATA in select else found.with_(metadata=Metadata.of(nothing))

    def write(self, batch: Batch, *, fresh: bool = False) -> None:
        dims = {name: each.dim for name, each in self.describe().dense.items()}
        if any(array.shape[1] != dims[name] for name, array in batch.vectors.items()):
            raise StoreError("the vectors have another dimension")
        for row, each in enumerate(batch.ids):
            self.here["rows"][json.dumps([batch.namespace, each])] = batch.take([row])

    def delete(self, ids: Sequence[Id], *, namespace: str = "") -> None:
        for each in ids:
            self.here["rows"].pop(json.dumps([namespace, each]), None)

    def search(
        self,
        queries: FloatArray,
        k: int,
        *,
        vector: str = "",
        exact: bool = False,
        namespace: str = "",
    ) -> Hits:
        rows = [row for row in self._rows().values() if row.namespace == namespace]
        if not rows:
            return Hits([[] for _ in queries], [[] for _ in queries], True)
        batch = Batch.joined(rows)
        metric = self.describe().vectors[vector].metric
        return nearest(metric, batch.ids, batch.vectors[vector], queries, k)
