"""When a Qdrant server indexes: not while a collection is loaded, and done before it is measured.

A collection is indexed once a segment's vectors are larger than its ``indexing_threshold``
(kB).  At 0 nothing is.  What it was before is noted in the collection's metadata, so that a
crash leaves a way back; servers before 1.16 keep no metadata.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from runner.errors import CollectionNotFoundError, StoreError, TransientStoreError
from runner.model import DEFAULT_VECTOR
from runner.stores.qdrant_address import Transport, Version
from runner.stores.qdrant_points import all_vectors

__all__ = ["KEEPS_METADATA", "SAVED_THRESHOLD", "Indexing"]

KEEPS_METADATA: Version = (1, 16)
"""Since when collections have metadata."""

SAVED_THRESHOLD = "vector-migration-runner.indexing-threshold"
"""The key of a collection's metadata under which its threshold is noted."""

_DEFAULT_THRESHOLD = 20_000
_BYTES_OF = {"float16": 2, "uint8": 1}
_COUNTS_BY_VECTOR: Version = (1, 13)


class Indexing:
    """The indexing of one collection.

    Args:
        wire: How to reach the server.
        collection: The collection's own name; asked for at each use, for an alias may move.
        place: What to call it in errors.

    Attributes:
        stalled_s: How long `finish` waits without any progress.
        settled_s: How long the server has to call the collection green without indexing more
            before that is taken for the end.  Since 1.8 it does so only if nothing is due,
            but waiting for other collections' turn it may for a while.
        poll_s: First and longest pause between two looks.
    """

    stalled_s: float = 300.0
    settled_s: float = 30.0
    poll_s: tuple[float, float] = (0.05, 2.0)

    def __init__(self, wire: Transport, collection: Callable[[], str], place: str) -> None:
        self._wire = wire
        self._collection = collection
        self._place = place
        self._before: int | None = None  # what the threshold was when we set it to 0

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """While open, nothing is indexed."""
        now, saved = self._thresholds()
        if saved is None:
            self._before = _DEFAULT_THRESHOLD if now is None else now
            if self._wire.version() >= KEEPS_METADATA:
                kept = {SAVED_THRESHOLD: self._before}
                self._wire.update(self._collection(), {"metadata": kept})
        self._set_threshold(0)
        try:
            yield
        finally:
            self._resume()

    def finish(self, *, wanted: bool, threshold: int | None) -> None:
        """Let the server index, and wait until it has.

        Args:
            wanted: Whether the collection is to have an index.
            threshold: What it was made with; None for the server's default.

        Raises:
            StoreError: The server says that it failed.
            TransientStoreError: It made no progress for `stalled_s`.
        """
        self._resume()
        now, _ = self._thresholds()
        if now == 0 and wanted and self._wire.version() < KEEPS_METADATA:
            # A crash while loading left it so, and there was nowhere to note what was before.
            self._set_threshold(threshold or _DEFAULT_THRESHOLD)
        self._wait()

    def _resume(self) -> None:
        now, saved = self._thresholds()
        before = self._before if saved is None else saved
        if before is not None and now != before:
            self._set_threshold(before)
        if saved is not None:
            self._wire.update(self._collection(), {"metadata": {SAVED_THRESHOLD: None}})
        self._before = None

    def _set_threshold(self, kilobytes: int) -> None:
        settings = {"optimizers_config": {"indexing_threshold": kilobytes}}
        self._wire.update(self._collection(), settings)

    def _thresholds(self) -> tuple[int | None, int | None]:
        """The threshold as it is, and the one that was before we set it to 0."""
        config = self._info()["config"]
        now = (config.get("optimizer_config") or {}).get("indexing_threshold")
        saved = (config.get("metadata") or {}).get(SAVED_THRESHOLD)
        return now, None if saved is None else int(saved)

    def _wait(self) -> None:
        having = self._having()
        pause, longest = self.poll_s
        seen, moved_at, calm, nudged = -1, time.monotonic(), 0, False
        while True:
            info = self._info()
            self._raise_failure(info)
            status, indexed = info["status"], int(info.get("indexed_vectors_count") or 0)
            calm = calm + 1 if status == "green" and indexed >= _due(info, having) else 0
            if calm == 2:
                return
            if indexed != seen:
                seen, moved_at = indexed, time.monotonic()
            quiet_s = time.monotonic() - moved_at
            if status == "green" and quiet_s > self.settled_s:
                # What is due is an estimate: sparse vectors without a term are not in the
                # index, and servers before 1.13 do not say how many points lack a vector.
                return
            if status == "grey" and not nudged:
                # After a restart optimisation waits for a change; this one changes nothing.
                now, _ = self._thresholds()
                self._set_threshold(_DEFAULT_THRESHOLD if now is None else now)
                nudged = True
            if quiet_s > self.stalled_s:
                raise TransientStoreError(
                    f"{self._place} is {status} and has indexed {indexed:,} vectors of "
                    f"{info.get('points_count') or 0:,} points, with no progress for "
                    f"{self.stalled_s:.0f} s",
                    "look at the server's log; going on later is fine",
                )
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def _raise_failure(self, info: Mapping[str, Any]) -> None:
        failed = info.get("optimizer_status")
        if isinstance(failed, Mapping) and failed.get("error"):
            raise StoreError(
                f"{self._place}: the server cannot index it: {failed['error']}",
                "a full disk is a common reason; look at the server's log",
            )

    def _having(self) -> dict[str, int]:
        """How many points have each of the vectors; at most, where the server does not say."""
        info, collection = self._info(), self._collection()
        names = list(all_vectors(info["config"]["params"]))
        if names == [DEFAULT_VECTOR] or self._wire.version() < _COUNTS_BY_VECTOR:
            return dict.fromkeys(names, self._wire.count(collection))
        return {name: self._wire.count(collection, has_vector=name) for name in names}

    def _info(self) -> dict[str, Any]:
        found = self._wire.info(self._collection())
        if found is None:
            raise CollectionNotFoundError(f"{self._place} does not exist")
        return found


def _due(info: Mapping[str, Any], having: Mapping[str, int]) -> int:
    """How many vectors must be indexed at least before searches use the index.

    A segment stays unindexed while its vectors are smaller than the threshold.  While
    indexing has not begun, the server is green with none of the dense vectors indexed;
    sparse ones count as indexed from the start.

    Args:
        info: The collection's description.
        having: How many points have each of the vectors.
    """
    config = info["config"]
    threshold = (config.get("optimizer_config") or {}).get("indexing_threshold")
    if threshold == 0:
        return 0
    kilobytes = _DEFAULT_THRESHOLD if threshold is None else threshold
    segments = max(1, int(info.get("segments_count") or 1))
    due = 0
    for name, vector in all_vectors(config["params"]).items():
        if vector is None:
            due += having[name]
            continue
        hnsw = {**(config.get("hnsw_config") or {})}
        hnsw |= {k: v for k, v in (vector.get("hnsw_config") or {}).items() if v is not None}
        if hnsw.get("m") == 0:
            continue
        size = int(vector["size"]) * _BYTES_OF.get(str(vector.get("datatype")).lower(), 4)
        due += max(0, having[name] - segments * (kilobytes * 1024 // size + 1))
    return due
