"""Ids are listed without a gap, whatever is deleted between two pages."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from runner.stores.sorted_ids import SortedIds, list_ids


def test_ids_come_sorted_by_their_bytes_and_once(tmp_path: Path) -> None:
    ids = SortedIds(tmp_path)
    ids.add(["b", "a", "🙂", "Z", "a\0b", "é", "a"])
    ids.add(["b"])
    assert [each for page in ids.pages(2) for each in page] == [
        "Z", "a", "a\0b", "b", "é", "🙂",
    ]  # fmt: skip
    assert len(ids) == 6
    assert "a\0b" in ids
    assert "a\0" not in ids
    assert ids.between("a", "é", "a", 10) == ["a\0b", "b"]
    assert list(tmp_path.iterdir())
    ids.close()
    ids.close()
    assert list(tmp_path.iterdir()) == []


def test_cuts_divide_into_parts_of_the_same_size(tmp_path: Path) -> None:
    ids = SortedIds(tmp_path)
    assert ids.cuts(4) == []
    ids.add(f"{number:04d}" for number in range(1000))
    assert ids.cuts(4) == ["0250", "0500", "0750"]
    assert ids.cuts(1) == []
    assert len(ids.cuts(5000)) == 999
    ids.close()


@given(
    st.lists(st.sets(st.integers(0, 39), max_size=8), max_size=12),
    st.integers(2, 7),
    st.integers(1, 40),
)
def test_listing_misses_nothing_that_stays(
    tmp_path_factory, deletions: list[set[int]], size: int, total: int
) -> None:
    live = [str(number) for number in range(total)]
    coming = iter(deletions)
    new = iter(range(1000, 2000))

    def page(limit: int, offset: int) -> list[str]:
        found = live[offset : offset + limit]
        for gone in next(coming, set()):
            if str(gone) in live:
                live.remove(str(gone))
                live.append(str(next(new)))
        return found

    before = set(live)
    ids = SortedIds(tmp_path_factory.mktemp("ids"))
    list_ids(page, ids, size)
    found = {each for part in ids.pages(100) for each in part}
    ids.close()
    assert before & set(live) <= found
