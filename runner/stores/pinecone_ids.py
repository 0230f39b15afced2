"""The ids of an index, listed once and kept: pages have no offset, tokens end with their time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path

from runner.errors import StoreError
from runner.stores.pinecone_packing import id_problem
from runner.stores.sorted_ids import SortedIds

__all__ = ["IdLists"]

_KEPT = 32  # lists; each is an open file
_LOOKED_UP = 1000


class IdLists:
    """Sorted ids by namespace, in *folder*; several threads may ask.

    Args:
        folder: Where the lists are kept; the caller removes it.
        page: From a namespace and a token (None: the first page) to ids and the next token.
        exist: From ids and a namespace to those that are there.
        file: One id a line, where the index cannot list.
    """

    def __init__(
        self,
        folder: Path,
        page: Callable[[str, str | None], tuple[list[str], str | None]],
        exist: Callable[[Sequence[str], str], Collection[str]],
        file: Path | None,
    ) -> None:
        self._folder = folder
        self._page = page
        self._exist = exist
        self.file = file
        self._lock = threading.Lock()
        self._listing: dict[str, threading.Lock] = {}
        self._lists: OrderedDict[str, SortedIds] = OrderedDict()
        self._generation = 0

    def of(self, namespace: str) -> SortedIds:
        """Every id of *namespace*, as it was when first asked for since `forget`."""
        with self._lock:
            listing = self._listing.setdefault(namespace, threading.Lock())
        with listing:
            with self._lock:
                known = self._lists.get(namespace)
                generation = self._generation
                if known is not None:
                    self._lists.move_to_end(namespace)
                    return known
            self._folder.mkdir(parents=True, exist_ok=True)
            made = SortedIds(self._folder)
            for ids in self._pages(namespace):
                made.add(ids)
            with self._lock:
                # what changed meanwhile may be missing
                if generation == self._generation:
                    self._lists[namespace] = made
                # not closed: a scan may be on its way through it
                while len(self._lists) > _KEPT:
                    self._lists.popitem(last=False)
            return made

    @property
    def is_given(self) -> bool:
        """Whether there is a file and it names any id."""
        return self.file is not None and any(True for _ in _lines(self.file))

    def forget(self) -> None:
        """List anew when asked again; lists in use stay as they are."""
        with self._lock:
            self._lists.clear()
            self._generation += 1

    def close(self) -> None:
        """Remove the files."""
        with self._lock:
            for each in self._lists.values():
                each.close()
            self._lists.clear()

    def _pages(self, namespace: str) -> Iterator[Collection[str]]:
        if self.file is not None:
            yield from self._from_file(self.file, namespace)
            return
        token: str | None = None
        while True:
            ids, token = self._page(namespace, token)
            yield ids
            if token is None:
                return

    def _from_file(self, file: Path, namespace: str) -> Iterator[Collection[str]]:
        lines = _lines(file)
        while some := [*islice(lines, _LOOKED_UP)]:
            yield self._exist([each for each in some if not id_problem(each)], namespace)


def _lines(file: Path) -> Iterator[str]:
    """The lines of a text file that are not empty."""
    try:
        with file.open(encoding="utf-8") as opened:
            for line in opened:
                text = line.rstrip("\r\n")
                if text:
                    yield text
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(
            f"source.ids_from: {file} cannot be read as text: {error}", "one id a line, in UTF-8"
        ) from error
