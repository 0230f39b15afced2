"""``python -m tests.bench``: throughput of every pair as a share of its bare pipe, and memory.

With ``--several`` records have a vector of each kind, and the pairs are those of Qdrant with
itself and files.
Prints a table and writes ``bench-results.json``.  All figures of a pair come from one
run, its variants in turn, and are medians of the repetitions.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from runner import jsonvalues, load_plan
from runner.model import CollectionSpec, VectorSpec
from runner.stores import open_store
from runner.stores.base import Access, Connection, Location, Target
from tests.bench import kinds, memory, pipes
from tests.servers import outside, postgres

DIM = 384
STORES = ["chroma", "pgvector", "faiss", "qdrant", "pinecone", "weaviate", "files"]
INDEX = {"pgvector": "none", "faiss": "flat"}
"""Building a graph would be most of the time, and is the library's own."""
FEW = {"chroma": 20_000}
"""Chroma's own HNSW insertion is the limit there."""


@dataclass
class Row:
    """One pair, checks off or read-back on; records a second and the share reached.

    *digest_us* is what the digest of a record costs, in microseconds of one core; digests are
    kept with checks off as well, for a rollback needs them.
    """

    source: str
    target: str
    read_back: bool
    records: int
    bare_read: float
    bare_write: float
    pipe: float
    runner: float
    share: float
    digest_us: float

    @property
    def digest_share(self) -> float:
        """How much of one core the digests keep busy while the runner copies."""
        return self.digest_us * 1e-6 * self.runner


def make_parquet(path: Path, records: int) -> None:
    """Records with a document and four metadata fields."""
    rng = np.random.default_rng(7)
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("document", pa.string()),
            ("metadata", pa.string()),
            ("vector", pa.list_(pa.float32(), DIM)),
        ]
    )
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "the",
        "lazy",
        "dog",
        "while",
        "a",
        "reader",
        "looks",
        "on",
    ]
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, records, 10_000):
            n = min(10_000, records - start)
            vectors = rng.standard_normal((n, DIM), dtype=np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            picks = rng.integers(0, len(words), (n, 40))
            rows = range(start, start + n)
            table = pa.table(
                {
                    # UUIDs, so that every store takes the ids as they are
                    "id": [f"{row:08x}-0000-5000-8000-{row:012x}" for row in rows],
                    "document": [" ".join(words[place] for place in line) for line in picks],
                    "metadata": [
                        jsonvalues.dumps(
                            {"title": f"No {row}", "year": 1990 + row % 40, "score": row / 7,
                             "open": row % 3 == 0}
                        ).decode()
                        for row in rows
                    ],
                    "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIM),
                },
                schema=schema,
            )  # fmt: skip
            writer.write_table(table)


@dataclass(frozen=True)
class Servers:
    """Where they are: a DSN, and the doubles."""

    dsn: str
    qdrant: outside.QdrantAddress
    pinecone: outside.PineconeAddress
    weaviate: dict[str, Any]


class Bench:
    """Sources that are filled once, and targets that are fresh each time.

    Args:
        folder: Where everything lies.
        servers: The servers.
        records: How many a pair moves.
        several: Whether each has a vector of every kind.
    """

    def __init__(self, folder: Path, servers: Servers, records: int, *, several: bool) -> None:
        self.folder = folder
        self.dsn = servers.dsn
        self.qdrant = servers.qdrant
        self.pinecone = servers.pinecone
        self.weaviate = servers.weaviate
        self.records = records
        self.several = several
        self._fresh = 0

    def count(self, target: str) -> int:
        """How many records a pair with this target moves."""
        return min(self.records, FEW.get(target, self.records))

    def location(self, store: str, name: str, side: str) -> Location:
        """Where *store* keeps the collection *name*."""
        options: dict[str, object]
        match store:
            case "chroma":
                options = {"path": str(self.folder / name), "collection": "bench"}
            case "pgvector":
                options = {"dsn": self.dsn, "table": name}
            case "faiss":
                options = {"path": str(self.folder / f"{name}.faiss")}
            case "qdrant":
                options = {"url": self.qdrant.url, "collection": name}
                return Location(store, options, Connection(grpc_host=self.qdrant.grpc_host), side)
            case "pinecone":
                options = {
                    "control_host": self.pinecone.url,
                    "api_key": self.pinecone.api_key,
                    "index": name.replace("_", "-"),
                    "requests_per_s": 100_000,  # what the client can do, not what one may ask
                }
            case "weaviate":
                options = {**self.weaviate, "collection": name.capitalize()}
            case _:
                options = {"path": str(self.folder / f"{name}.parquet")}
        if side == "target" and store in INDEX:
            options["index"] = {"type": INDEX[store]}
        return Location(store, options, side=side)

    def source(self, store: str, records: int) -> Location:
        """A filled collection of *records* records."""
        name = f"source_{store}_{records}"
        location = self.location(store, name, "source")
        done = self.folder / f"{name}.done"
        if not done.exists():
            seed = self.folder / f"seed_{records}.parquet"
            if not seed.exists():
                make_parquet(seed, records)
                if self.several:
                    self._add_kinds(seed)
            self._fill(store, name, seed)
            done.touch()
        return location

    def _add_kinds(self, seed: Path) -> None:
        """Give the records of *seed* a vector of each kind."""
        made = seed.with_suffix(".kinds.parquet")
        origin, place = (Location("files", {"path": str(each)}) for each in (seed, made))
        with (
            open_store(origin, Access.READ, self.scratch("plain")) as source,
            open_store(place, Access.WRITE, self.scratch("kinds")) as target,
        ):
            assert isinstance(target, Target)
            wanted = CollectionSpec("bench", kinds.VECTORS, id_kind="uuid")
            spec = target.propose(wanted, 0, 0).spec
            target.create(spec)
            for number, batch in enumerate(pipes.pages(source)):
                target.write(kinds.with_every_kind(batch, number), fresh=True)
            target.finish(spec)
        made.replace(seed)

    def _fill(self, store: str, name: str, seed: Path) -> None:
        self._run(Location("files", {"path": str(seed)}), self.location(store, name, "target"))

    def fresh(self, store: str) -> Location:
        """A collection that does not exist yet."""
        self._fresh += 1
        return self.location(store, f"target_{self._fresh}", "target")

    def forget(self, location: Location) -> None:
        """Remove a target."""
        with open_store(location, Access.WRITE, self.scratch("forget")) as target:
            assert isinstance(target, Target)
            target.drop()

    def scratch(self, name: str) -> Path:
        """An empty private folder."""
        folder = self.folder / "scratch" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def _run(self, source: Location, target: Location, *, read_back: bool = False) -> float:
        """Records a second of the runner's copy step."""
        folder = self.scratch("plan")
        document = {
            "name": "bench",
            "source": self._side(source),
            "target": self._side(target),
            "workers": 2,
            "validation": {
                "level": "quick",
                "count": "exact",
                "checksum": "every_batch" if read_back else "none",
                "metadata": "none",
            },
        }
        os.environ["BENCH_DSN"] = self.dsn
        os.environ["BENCH_KEY"] = self.pinecone.api_key
        text = json.dumps(document)
        for secret, name in ((self.dsn, "BENCH_DSN"), (self.pinecone.api_key, "BENCH_KEY")):
            text = text.replace(json.dumps(secret), f'"${{{name}}}"')
        (folder / "plan.yaml").write_text(text)
        result = load_plan(folder / "plan.yaml").run()
        assert result.verdict == "passed", result.checks
        seconds = next(step.seconds for step in result.steps if step.kind == "copy")
        assert seconds
        return result.records / seconds

    def _side(self, location: Location) -> dict[str, object]:
        side = {"store": location.store, **location.options}
        if location.connection.grpc_host:
            side["connection"] = {"grpc_host": location.connection.grpc_host}
        return side

    def pair(self, source: str, target: str, *, read_back: bool, repetitions: int) -> Row:
        """All variants of one pair, in turn."""
        records = self.count(target)
        place = self.source(source, records)
        figures = [self._once(place, target, read_back=read_back) for _ in range(repetitions)]
        read, write, pipe, runner, digest = map(statistics.median, zip(*figures, strict=True))
        share = statistics.median(mine / bare for _, _, bare, mine, _ in figures)
        return Row(source, target, read_back, records, read, write, pipe, runner, share, digest)

    def _once(
        self, place: Location, target: str, *, read_back: bool
    ) -> tuple[float, float, float, float, float]:
        """Bare read, bare write, the best bare pipe, and the runner, all in records a second;
        then the microseconds of a record's digest.
        """
        read = pipes.read_alone(place, self.scratch("read"))
        write, digest = self._from_memory(place, target, read_back=read_back)
        scratch = self.scratch("pipe")

        def threads(writers: int) -> Callable[[Target], float]:
            return lambda to: pipes.two_threads(
                place,
                scratch,
                to,
                writers=min(writers, to.capabilities.max_writers),
                read_back=read_back,
            )

        piped = [self._onto(target, place, threads(1)), self._onto(target, place, threads(2))]
        # a process forked beside the threads of gRPC, Chroma or Pinecone's calls would hang
        if not {"chroma", "qdrant", "pinecone", "weaviate"} & {place.store, target}:
            piped.append(
                self._onto(
                    target,
                    place,
                    lambda to: pipes.two_processes(place, scratch, to, read_back=read_back),
                )
            )
        into = self.fresh(target)
        runner = self._run(place, into, read_back=read_back)
        self.forget(into)
        return read, write, max(piped), runner, digest

    def _from_memory(self, place: Location, target: str, *, read_back: bool) -> tuple[float, float]:
        with open_store(place, Access.READ, self.scratch("memory")) as store:
            batches = list(pipes.pages(store))
        write = self._onto(
            target, place, lambda to: pipes.write_alone(batches, to, read_back=read_back)
        )
        return write, pipes.digest_us(batches)

    def packing(self, source: str) -> float:
        """See `pipes.filled`, of what *source* holds."""
        place = self.source(source, self.count("pinecone"))
        with open_store(place, Access.READ, self.scratch("packing")) as store:
            return pipes.filled([*pipes.pages(store)])

    def _onto(self, store: str, like: Location, act: Callable[[Target], float]) -> float:
        location = self.fresh(store)
        with open_store(like, Access.READ, self.scratch("like")) as source:
            wanted = source.describe()
        assert wanted is not None
        with open_store(location, Access.WRITE, self.scratch("target")) as target:
            assert isinstance(target, Target)
            spec = CollectionSpec(
                type(target).endpoint(location).collection,
                {
                    name: VectorSpec(each.dim, each.metric, each.kind)
                    for name, each in wanted.vectors.items()
                },
                id_kind="uuid",
            )
            target.create(target.propose(spec, 0, 0).spec)
            try:
                return pipes.quietly(lambda: act(target))
            finally:
                target.drop()


@contextmanager
def _servers() -> Iterator[Servers]:
    with (
        postgres.shared().database() as dsn,
        outside.qdrant() as qdrant,
        outside.pinecone("127.0.0.77") as pinecone,
        outside.weaviate() as weaviate,
    ):
        yield Servers(dsn, qdrant, pinecone, weaviate)


def _print(row: Row) -> None:
    print(
        f"{row.source:>9} → {row.target:<9} {_mode(row):<10} {row.records:>8,}  "
        f"read {row.bare_read:>8,.0f}  write {row.bare_write:>8,.0f}  "
        f"least {min(row.bare_read, row.bare_write):>8,.0f}  pipe {row.pipe:>8,.0f}  "
        f"runner {row.runner:>8,.0f}/s  share {row.share:.2f}  "
        f"digests {row.digest_us:.1f} µs, {row.digest_share:.0%} of a core",
        flush=True,
    )


def markdown(rows: list[Row]) -> str:
    """The table as the README shows it."""
    lines = [
        "| from | to | | records | least of read and write /s | pipe /s | runner /s | share |"
        " digests |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row.source} | {row.target} | {_mode(row)} | {row.records:,} "
        f"| {min(row.bare_read, row.bare_write):,.0f} | {row.pipe:,.0f} | {row.runner:,.0f} "
        f"| {row.share:.2f} | {row.digest_us:.1f} µs |"
        for row in rows
    ]
    return "\n".join(lines)


def _mode(row: Row) -> str:
    return "read back" if row.read_back else "checks off"


def main() -> int:
    """Run the pairs asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--sources", nargs="+", default=STORES, choices=STORES)
    parser.add_argument("--targets", nargs="+", default=STORES, choices=STORES)
    parser.add_argument(
        "--memory",
        type=int,
        nargs="*",
        default=[50_000, 500_000],
        help="numbers of records to compare the memory of; none for no comparison",
    )
    parser.add_argument("--output", type=Path, default=Path("bench-results.json"))
    parser.add_argument("--several", action="store_true", help="a vector of each kind a record")
    options = parser.parse_args()
    if options.several:
        options.sources = [each for each in options.sources if each in kinds.STORES]
        options.targets = [each for each in options.targets if each in kinds.STORES]
        options.memory = []
    rows: list[Row] = []
    peaks: dict[int, int] = {}
    packing: float | None = None
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="vmr-bench-"))
    try:
        with _servers() as servers:
            bench = Bench(folder, servers, options.records, several=options.several)
            for source in options.sources:
                for target in options.targets:
                    if options.several and source == target == "files":
                        continue  # its pipe of two processes passes on dense vectors only
                    for read_back in (False, True):
                        row = bench.pair(
                            source, target, read_back=read_back, repetitions=options.repetitions
                        )
                        rows.append(row)
                        _print(row)
            if "pinecone" in options.targets:
                packing = bench.packing(options.sources[0])
                print(f"pinecone: full requests hold {packing:.1%} of the 2 MB that they may")
            os.environ["BENCH_DSN"] = servers.dsn
            for records in options.memory:
                table = bench.source("pgvector", records)
                peaks[records] = memory.peak_bytes(table, folder, records)
                print(f"pgvector → files  {records:>9,} records  peak {peaks[records]:>13,} bytes")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    cpu = subprocess.run(["uname", "-m"], capture_output=True, text=True, check=True)
    print(markdown(rows))
    options.output.write_text(
        json.dumps(
            {
                "machine": f"{os.cpu_count()} cores, {cpu.stdout.strip()}",
                "python": sys.version.split()[0],
                "seconds": round(time.monotonic() - began),
                "rows": [asdict(row) for row in rows],
                "peak_bytes": peaks,
                "pinecone_packing": packing,
            },
            indent=2,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
