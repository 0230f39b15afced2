"""Records that the target holds and that this run did not write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from runner.checks.digest import id_digests, keys_of
from runner.copy.journal import Journal
from runner.model import Batch, Id


class Strangers:
    """Their ids, 8 bytes each, to be looked up before a batch is written.

    What comes to the target later is not among them: a plain insert finds it where the
    store has one, else the checks do.

    Args:
        pages: Namespaces and ids that the target holds.
        known: Those among them that are of no account: the run's own, or those it may overwrite.
    """

    def __init__(
        self,
        pages: Iterable[tuple[str, Sequence[Id]]] = (),
        known: Iterable[tuple[str, Sequence[Id]]] = (),
    ) -> None:
        found = _keys(pages)
        # setdiff1d leaves them sorted
        self._keys = np.setdiff1d(found, _keys(known)) if len(found) else found

    def among(self, ids: Sequence[Id], namespace: str = "") -> bool:
        """Whether any of *ids* in *namespace* is a stranger's."""
        if not len(self._keys) or not len(ids):
            return False
        keys = keys_of(id_digests(ids, namespace))
        places = np.searchsorted(self._keys, keys)
        places[places == len(self._keys)] = 0
        return bool((self._keys[places] == keys).any())


def own_ids(journal: Journal) -> Iterable[tuple[str, list[Id]]]:
    """Namespace and ids of every batch that the run is known to have written."""
    return ((namespace, ids) for namespace, ids, *_ in journal.written())


def _keys(pages: Iterable[tuple[str, Sequence[Id]]]) -> npt.NDArray[np.uint64]:
    parts = [keys_of(id_digests(ids, namespace)) for namespace, ids in pages]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)


def part_of(batch: Batch, ids: Sequence[Id]) -> Batch:
    """The records of *batch* that have one of *ids*."""
    wanted = {(type(each), each) for each in ids}
    return batch.take([row for row, each in enumerate(batch.ids) if (type(each), each) in wanted])
