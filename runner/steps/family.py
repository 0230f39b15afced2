"""What the sources of one plan know of each other: each is a run of its own into one target.

All these runs leave the same mark on the target, that of the first of them.  What another
source of the plan wrote is nobody else's, and goes only when that source is taken back; the
last one that is takes the target along, if any of them made it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from runner.checks.digest import id_digests, keys_of
from runner.checks.evidence import Others
from runner.copy.journal import Journal
from runner.copy.strangers import own_ids
from runner.errors import CapabilityError, JournalError
from runner.model import Id
from runner.steps.loaded import LoadedPlan
from runner.steps.marks import mark_id_of
from runner.steps.preflight import Preflight, mapped_id_pages, preparation_for
from runner.steps.state import RunFolder
from runner.stores.base import Source, Target
from runner.words import named_list

Keys = npt.NDArray[np.uint64]
_NONE: Keys = np.zeros(0, dtype=np.uint64)

MEET = (
    "keep them apart: `namespace:` beside each source, where the target has namespaces or with "
    "`namespace_to: collection`; with `namespace_to: {field: …}` and `ids: uuid5` an id becomes "
    "the UUID of both"
)


@dataclass(frozen=True)
class Family:
    """The other sources of a plan, as far as they have runs.

    Attributes:
        living: Names of those whose records are in the target.
        leaving: Names of those that are taken for gone, since they are about to be taken back.
        mark_id: What the target bears of them; empty if there are none.
        others: What they wrote, for the checks.
        written: Name → keys of the ids in the target, of the living ones.
        going: Keys of those that are about to go.
        made: Whether one of the runs, gone or not, made the target.
        folders: Folders that they made for it, the deepest first.
    """

    living: tuple[str, ...] = ()
    leaving: tuple[str, ...] = ()
    mark_id: str = ""
    others: Others = field(default_factory=Others)
    written: dict[str, Keys] = field(default_factory=dict)
    going: Keys = field(default_factory=lambda: _NONE)
    made: bool = False
    folders: tuple[str, ...] = ()


def family_of(plan: LoadedPlan, leaving: Collection[str] = ()) -> Family:
    """The others of *plan*; those in *leaving* are taken for gone."""
    if not plan.siblings:
        return Family()
    own = _collections_of(plan)
    living: dict[str, Keys] = {}
    gone: list[Keys] = []
    going: list[Keys] = []
    marks: list[str] = []
    for sibling in plan.siblings:
        newest = sibling.state.newest()
        if newest is None:
            continue
        with _opened(newest, sibling) as journal:
            if not _writes(journal) or _lies_elsewhere(journal, own):
                continue
            name = sibling.document.part
            keys = _keys((space, ids) for space, ids in own_ids(journal) if not own or space in own)
            over = journal.fact("rolled_back") or journal.fact("abandoned")
            if over or name in leaving:
                gone.append(keys)
                going += [] if over else [keys]
            else:
                living[name] = keys
            if not over:
                marks.append(mark_id_of(journal))
    mark_id = marks[0] if marks else _own_mark(plan)
    made, folders = _making(plan, mark_id)
    return Family(
        living=tuple(living),
        leaving=tuple(leaving),
        mark_id=mark_id if marks else "",
        others=Others(_joined(living.values()), _joined(gone)),
        written=living,
        going=_joined(going),
        made=made,
        folders=folders,
    )


@contextmanager
def _opened(folder: RunFolder, plan: LoadedPlan) -> Iterator[Journal]:
    try:
        journal = Journal.open_existing(folder.journal, read_only=True)
    except JournalError as error:
        what = f"source {plan.document.part}: {error.what}"
        raise JournalError(what, error.hint) from error
    try:
        yield journal
    finally:
        journal.close()


def _writes(journal: Journal, *kinds: str) -> bool:
    """Whether the run came to write to the target; by a step of one of *kinds* if any is named."""
    steps = journal.fact("steps", [])
    wanted = kinds or ("create", "append")
    return any(
        step["kind"] in wanted and journal.step_state(number)
        for number, step in enumerate(steps, start=1)
    )


def _own_mark(plan: LoadedPlan) -> str:
    newest = plan.state.newest()
    if newest is None:
        return ""
    with _opened(newest, plan) as journal:
        return mark_id_of(journal)


def _making(plan: LoadedPlan, mark_id: str) -> tuple[bool, tuple[str, ...]]:
    """Whether a run under this mark made the target, and the folders that it made for it."""
    made = False
    folders: set[str] = set()
    for each in (plan, *plan.siblings) if mark_id else ():
        for folder in each.state.run_folders():
            with _opened(folder, each) as journal:
                if mark_id_of(journal) == mark_id:
                    made |= _writes(journal, "create")
                    folders |= {*(journal.fact("made_folders") or ())}
    return made, tuple(sorted(folders, key=len, reverse=True))


def _lies_elsewhere(journal: Journal, own: Mapping[str, str]) -> bool:
    """Whether the run wrote to none of the collections *own*, if there are any."""
    there: Mapping[str, str] = journal.fact("collections") or {}
    return bool(own and there) and not own.items() & there.items()


def _collections_of(plan: LoadedPlan) -> Mapping[str, str]:
    """The collections that the newest run of *plan* divides its target into, if it does."""
    newest = plan.state.newest()
    if newest is None or plan.document.namespace_to.kind != "collection":
        return {}
    journal = Journal.open_existing(newest.journal, read_only=True)
    try:
        found: Mapping[str, str] = journal.fact("collections") or {}
    finally:
        journal.close()
    return found


@dataclass(frozen=True)
class Claim:
    """The ids that one source would write.

    Attributes:
        name: The source's.
        keys: Of the ids, sorted.
        pages: The ids themselves with their namespaces, read anew at every call.
    """

    name: str
    keys: Keys
    pages: Callable[[], Iterator[tuple[str, Sequence[Id]]]]


def claim_of(plan: LoadedPlan, found: Preflight, source: Source, target: Target) -> Claim:
    """What *plan*, one source of several, would write; reads all its ids."""
    preparation = preparation_for(
        plan.document,
        target,
        found.collection,
        found.id_map,
        found.vector_names,
        found.namespaces,
        collect_failures=True,
    )

    def pages() -> Iterator[tuple[str, Sequence[Id]]]:
        return mapped_id_pages(source, preparation)

    return Claim(plan.document.part, _keys(pages()), pages)


def shared_ids(claim: Claim, written: dict[str, Keys]) -> str:
    """Which ids *claim* has in common with one of *written*, in words; empty if none."""
    for name, keys in written.items():
        both = np.intersect1d(claim.keys, keys)
        if len(both):
            first = named_list(_with_keys(claim.pages(), both, 4))
            many = "id" if len(both) == 1 else "ids"
            return (
                f"the sources {name} and {claim.name} have {len(both):,} {many} in common on the "
                f"target: {first}"
            )
    return ""


def refuse_shared_ids(claim: Claim, written: dict[str, Keys]) -> None:
    """Leave if *claim* has ids in common with any of *written*.

    Raises:
        CapabilityError: With the sources and the first ids.
    """
    if what := shared_ids(claim, written):
        raise CapabilityError(what, MEET)


def _with_keys(
    pages: Iterator[tuple[str, Sequence[Id]]], keys: Keys, most: int
) -> list[tuple[str, Id]]:
    found: list[tuple[str, Id]] = []
    for namespace, ids in pages:
        has = np.isin(keys_of(id_digests(ids, namespace)), keys)
        found += [(namespace, ids[row]) for row in np.flatnonzero(has).tolist()]
        if len(found) >= most:
            break
    return found


def _keys(pages: Iterable[tuple[str, Sequence[Id]]]) -> Keys:
    return _joined(keys_of(id_digests(ids, namespace)) for namespace, ids in pages)


def _joined(parts: Iterable[Keys]) -> Keys:
    found = [*parts]
    keys: Keys = np.concatenate(found) if found else _NONE.copy()
    keys.sort()
    return keys
