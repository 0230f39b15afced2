"""A store in a dictionary passes the suite: so can anybody's, with this much code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.errors import CollectionMismatchError, StoreError
from runner.model import (
    Batch, Capabilities, Endpoint, Fidelity, Hits, IdRule, Metadata, Metric, Page, Partition,
    Proposal, Select,
)  # fmt: skip
from runner.stores.base import Target
from runner.testing import Place, StoreConformance, joined

PLACES: dict[str, dict[str, Any]] = {}


def key_of(record_id):
    return json.dumps(record_id)


class ToyStore(Target):
    """Collections in this process; records sorted by their id's JSON text."""

    name = "toy"
    capabilities = Capabilities(
        ids=IdRule(integers=(-(2**64), 2**64)), metrics=dict.fromkeys(Metric, Fidelity.EXACT)
    )

    @classmethod
    def endpoint(cls, location):
        return Endpoint("toy", "memory", location.options["collection"])

    @property
    def here(self):
        found = PLACES.get(self.location.options["collection"])
        if found is None:
            raise StoreError("there is no such collection")
        return found

    def describe(self):
        return PLACES.get(self.location.options["collection"], {}).get("spec")

    def count(self):
        return len(self.here["rows"])

    def partitions(self, n):
        keys = sorted(self.here["rows"])
        cuts = sorted({keys[len(keys) * part // n] for part in range(1, n)}) if keys else []
        bounds = zip([None, *cuts], [*cuts, None], strict=True)
        return [Partition(index, *pair) for index, pair in enumerate(bounds)]

    def scan(self, partition, after, batch_size, select=Select.ALL):
        while True:
            keys = [
                key
                for key in sorted(self.here["rows"])
                if key >= (partition.lower or "")
                and (partition.upper is None or key < partition.upper)
                and (after is None or key > after)
            ][: batch_size.records]
            sizes = np.cumsum([self.here["rows"][key].size_bytes for key in keys])
            keys = keys[: max(1, int((sizes <= (batch_size.bytes or 2**60)).sum()))]
            if not keys:
                return
            after = keys[-1]
            yield Page(self.fetch([json.loads(key) for key in keys], select), after)

    def scan_ids(self, page_size=10_000):
        ids = [json.loads(key) for key in self.here["rows"]]
        return (ids[start : start + page_size] for start in range(0, len(ids), page_size))

    def fetch(self, ids, select=Select.ALL):
        rows = self.here["rows"]
        found = joined([rows[key_of(each)] for each in ids if key_of(each) in rows])
        return Batch(
            found.ids,
            found.vectors if Select.VECTORS in select else {},
            found.documents if Select.DOCUMENTS in select else [None] * len(found),
            found.metadata if Select.METADATA in select else Metadata.of([None] * len(found)),
        )

    def propose(self, wanted, records, size_bytes):
        return Proposal(wanted, f"a dictionary for {records} records")

    def create(self, spec):
        if self.describe():
            raise CollectionMismatchError("the collection exists")
        PLACES[self.location.options["collection"]] = {"spec": spec, "rows": {}, "mark": None}

    def write(self, batch, *, fresh=False):
        if batch.vector.shape[1] != self.here["spec"].vector.dim:
            raise StoreError("the vectors have another dimension")
        for row, record_id in enumerate(batch.ids):
            self.here["rows"][key_of(record_id)] = batch.take([row])

    def delete(self, ids):
        for each in ids:
            self.here["rows"].pop(key_of(each), None)

    def drop(self):
        PLACES.pop(self.location.options["collection"], None)

    def write_mark(self, mark):
        self.here["mark"] = mark

    def read_mark(self):
        return PLACES.get(self.location.options["collection"], {}).get("mark")

    def finish(self, spec):
        pass

    def search(self, queries, k, *, vector="", exact=False):
        batch = joined(self.here["rows"].values())
        q, v, metric = (
            queries.astype(float),
            batch.vector.astype(float),
            self.describe().vector.metric,
        )
        if metric is Metric.COSINE:
            q = q / np.linalg.norm(q, axis=1, keepdims=True)
            v = v / np.linalg.norm(v, axis=1, keepdims=True)
        close = -np.linalg.norm(q[:, None] - v, axis=2) if metric is Metric.L2 else q @ v.T
        order = np.argsort(-close, axis=1)[:, :k]
        scores = np.take_along_axis(close, order, 1).tolist()
        return Hits([[batch.ids[row] for row in rows] for rows in order], scores, True)

    def close(self):
        pass


class TestToyStore(StoreConformance):
    store = ToyStore

    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return Place(ToyStore, {"collection": str(tmp_path)}, tmp_path)
