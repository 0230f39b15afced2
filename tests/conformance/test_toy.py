"""A store in a dictionary passes the suite: so can anybody's, with a hundred lines."""

import json

import numpy as np
import pytest

from runner.errors import CollectionMismatchError, StoreError
from runner.model import (  # isort: split
    Batch,
    Capabilities,
    Endpoint,
    Fidelity,
    Hits,
    IdRule,
    Metadata,
    Metric,
    Page,
    Partition,
    Proposal,
    Select,
)

from runner.stores.base import Target
from runner.testing import Place, StoreConformance

PLACES: dict = {}
NOTHING: dict = {"spec": None, "rows": {}, "mark": None}


class ToyStore(Target):
    """Collections in this process; records are sorted by their id's JSON text."""

    name = "toy"
    capabilities = Capabilities(
        IdRule((-(2**64), 2**64)), dict.fromkeys(Metric, Fidelity.EXACT), missing_vector=True,
        named_vectors=True, sparse_vectors=True, multi_vectors=True,
    )  # fmt: skip

    @classmethod
    def endpoint(cls, location):
        return Endpoint("toy", "memory", location.options["collection"])

    def __init__(self, location, access, scratch):
        super().__init__(location, access, scratch)
        self.place = location.options["collection"]
        self.here = PLACES.get(self.place, NOTHING)

    def describe(self):
        return self.here["spec"]

    def count(self):
        return len(self.here["rows"])

    def partitions(self, n):
        keys = sorted(self.here["rows"])
        cuts = sorted({keys[len(keys) * part // n] for part in range(1, n)}) if keys else []
        bounds = zip([None, *cuts], [*cuts, None], strict=True)
        return [Partition(index, *pair) for index, pair in enumerate(bounds)]

    def scan(self, part, after, batch_size, select=Select.ALL):
        while keys := [
            key
            for key in sorted(self.here["rows"])
            if (part.lower or "") <= key < (part.upper or "~") and (after is None or key > after)
        ]:
            sizes = np.cumsum([self.here["rows"][key].size_bytes for key in keys])
            fitting = max(1, int((sizes <= (batch_size.bytes or 2**60)).sum()))
            keys = keys[: min(fitting, batch_size.records)]
            after = keys[-1]
            yield Page(self.fetch([json.loads(key) for key in keys], select), after)

    def scan_ids(self, page_size=10_000):
        ids = [json.loads(key) for key in self.here["rows"]]
        starts = range(0, len(ids), page_size)
        return (("", ids[start : start + page_size]) for start in starts)

    def fetch(self, ids, select=Select.ALL, *, namespace=""):
        rows = [self.here["rows"].get(json.dumps(each)) for each in ids]
        found = Batch.joined([each for each in rows if each])
        nothing = [None] * len(found)
        if Select.VECTORS not in select:
            found = found.with_(vectors={}, present={}, sparse={}, multi={})
        if Select.DOCUMENTS not in select:
            found = found.with_(documents=nothing)
        return found if Select.METADATA in select else found.with_(metadata=Metadata.of(nothing))

    def propose(self, wanted, records, size_bytes):
        return Proposal(wanted, f"a dictionary for {records} records")

    def create(self, spec):
        if self.describe():
            raise CollectionMismatchError("the collection exists")
        self.here = PLACES[self.place] = {"spec": spec, "rows": {}, "mark": None}

    def write(self, batch, *, fresh=False):
        dims = {name: each.dim for name, each in self.describe().dense.items()}
        if any(array.shape[1] != dims[name] for name, array in batch.vectors.items()):
            raise StoreError("the vectors have another dimension")
        rows = {json.dumps(each): batch.take([row]) for row, each in enumerate(batch.ids)}
        self.here["rows"].update(rows)

    def delete(self, ids, *, namespace=""):
        for each in ids:
            self.here["rows"].pop(json.dumps(each), None)

    def drop(self):
        PLACES.pop(self.place, None)
        self.here = NOTHING

    def write_mark(self, mark):
        self.here["mark"] = mark

    def read_mark(self):
        return self.here["mark"]

    def search(self, queries, k, *, vector="", exact=False, namespace=""):
        batch = Batch.joined([*self.here["rows"].values()])
        metric = self.describe().vectors[vector].metric
        return nearest(metric, batch.ids, batch.vectors[vector], queries, k)

    def close(self):
        pass


def nearest(metric, ids, vectors, queries, k):
    close = queries.astype(float) @ vectors.T
    if metric is Metric.L2:
        close = -np.linalg.norm(queries[:, None].astype(float) - vectors, axis=2)
    elif metric is Metric.COSINE:
        close = close / np.linalg.norm(vectors, axis=1)
    order = np.argsort(-close, axis=1)[:, :k]
    scores = np.take_along_axis(close, order, 1).tolist()
    return Hits([[ids[row] for row in rows] for rows in order], scores, True)


class TestToyStore(StoreConformance):
    store = ToyStore

    @pytest.fixture
    def place(self, tmp_path):
        return Place(ToyStore, {"collection": str(tmp_path)}, tmp_path)
