"""Vectors in a SQLite file: a store of somebody else's, made as `CONTRIBUTING.md` tells."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np

from runner import model
from runner.errors import CollectionMismatchError, StoreError
from runner.model import Batch, Metadata, Metric, Page, Select
from runner.stores.base import Target


class ShelfStore(Target):
    """One collection a file.  Options: ``path``, relative to the working folder."""

    name = "shelf"
    ids = model.IdRule(integers=(-(2**64), 2**64))  # keys are their JSON text
    exact = dict.fromkeys(Metric, model.Fidelity.EXACT)
    capabilities = model.Capabilities(ids, exact, searches=False, max_writers=1)

    def __init__(self, location, access, scratch):
        super().__init__(location, access, scratch)
        self.path = Path(location.options["path"]).absolute()

    @classmethod
    def endpoint(cls, location):
        path = Path(location.options["path"]).absolute()
        return model.Endpoint("shelf", str(path.parent), path.name)

    def ask(self, sql, rows=((),), mode="ro"):
        """What a statement returns, executed once for each of *rows*, as one transaction."""
        if mode == "ro" and not self.path.exists():
            return []
        with closing(sqlite3.connect(f"{self.path.as_uri()}?mode={mode}", uri=True)) as db, db:
            return [each for row in rows for each in db.execute(sql, row)]

    def about(self):
        return next(iter(self.ask("SELECT dim, metric, mark FROM about")), (0, None, None))

    def describe(self):
        dim, metric, _ = self.about()
        vectors = {"": model.VectorSpec(dim, Metric(metric))} if metric else {}
        return model.CollectionSpec(self.path.name, vectors) if metric else None

    def count(self):
        return sum(each for (each,) in self.ask("SELECT count(*) FROM records"))

    def partitions(self, n):
        return [model.Partition(0)]

    def scan(self, partition, after, batch_size, select=Select.ALL):
        next_ids = "SELECT id FROM records WHERE id > ? ORDER BY id LIMIT ?"
        while keys := [key for (key,) in self.ask(next_ids, [(after or "", batch_size.records)])]:
            batch = self.fetch([json.loads(key) for key in keys])
            fits = np.cumsum(batch.record_bytes()) <= (batch_size.bytes or 2**60)
            keys = keys[: max(1, int(fits.sum()))]
            after = keys[-1]
            yield Page(self.fetch([json.loads(key) for key in keys], select), after)

    def scan_ids(self, page_size=10_000):
        ids = [json.loads(key) for (key,) in self.ask("SELECT id FROM records")]
        return (("", ids[at : at + page_size]) for at in range(0, len(ids), page_size))

    def fetch(self, ids, select=Select.ALL, *, namespace=""):
        keys = [(json.dumps(each),) for each in ids]
        rows = self.ask("SELECT * FROM records WHERE id = ?", keys)
        ids, vectors, documents, objects = zip(*rows, strict=True) if rows else [()] * 4
        array = np.frombuffer(b"".join(vectors), np.float32).reshape(len(ids), self.about()[0])
        nothing = [None] * len(ids)
        return Batch(
            [json.loads(key) for key in ids],
            {"": array} if Select.VECTORS in select else {},
            list(documents) if Select.DOCUMENTS in select else nothing,
            Metadata(texts=objects) if Select.METADATA in select else Metadata.of(nothing),
        )

    def propose(self, wanted, records, size_bytes):
        return model.Proposal(wanted, f"file {self.path.name}")

    def create(self, spec):
        if self.path.exists():
            raise CollectionMismatchError(f"{self.path} exists")
        self.ask("CREATE TABLE records (id PRIMARY KEY, vector, document, metadata)", mode="rwc")
        self.ask("CREATE TABLE about (dim, metric, mark)", mode="rw")
        about = spec.vector.dim, spec.vector.metric, None
        self.ask("INSERT INTO about VALUES (?, ?, ?)", [about], "rw")

    def write(self, batch, *, fresh=False):
        if len(batch) and batch.vector.shape[1] != self.describe().vector.dim:
            raise StoreError("the vectors have another dimension")
        keys, vectors = map(json.dumps, batch.ids), map(np.ndarray.tobytes, batch.vector)
        rows = zip(keys, vectors, batch.documents, batch.metadata.texts(), strict=True)
        self.ask("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?)", rows, "rw")

    def delete(self, ids, *, namespace=""):
        keys = [(json.dumps(each),) for each in ids]
        self.ask("DELETE FROM records WHERE id = ?", keys, "rw")

    def drop(self):
        self.path.unlink(missing_ok=True)

    def write_mark(self, mark):
        self.ask("UPDATE about SET mark = ?", [(mark,)], "rw")

    def read_mark(self):
        return self.about()[2]

    def close(self):
        pass
