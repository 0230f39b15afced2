"""Numbers and other people's text, as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import Id
from runner.words import (
    about,
    clean,
    clock,
    duration,
    moment,
    number,
    plural,
    rate,
    share,
    shown,
    shown_list,
    shown_value,
    size,
)


@pytest.mark.parametrize(
    ("identifier", "expected"),
    [
        (42, "42"),
        ("42", '"42"'),
        ("", '""'),
        ("doc-1", '"doc-1"'),
        ("日本 é", '"日本 é"'),
        ("a\nb", '"a\\nb"'),
        ("\x1b[31mred", '"\\x1b[31mred"'),
        ("\u202eabc", '"\\u202eabc"'),
        ("smile 😀", '"smile \\U0001f600"'),
        ("\ud800", '"\\ud800"'),
        ("nul\x00", '"nul\\x00"'),
        ('say "hi" \\n', '"say \\"hi\\" \\\\n"'),
        ("[bold]x[/]", '"[bold]x[/]"'),
    ],
)
def test_an_id_is_shown_as_one_plain_word(identifier: Id, expected: str) -> None:
    assert shown(identifier) == expected


def test_a_long_id_is_cut_and_says_how_long_it_is() -> None:
    assert shown("x" * 5000, 10) == '"xxxxxxxxx…" (5,000 characters)'


@given(st.text())
def test_nothing_that_is_shown_can_steer_a_terminal(text: str) -> None:
    assert shown(text).isprintable()
    assert clean(text).isprintable()


@given(st.text(max_size=20), st.text(max_size=20))
def test_different_ids_look_different(left: str, right: str) -> None:
    assert (shown(left, 1000) == shown(right, 1000)) == (left == right)


def test_only_the_first_ids_are_listed() -> None:
    assert shown_list(["a", 1]) == '"a", 1'
    assert shown_list(["a", 1, "b", "c"]) == '"a", 1, "b" …'


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (number(1512), "1,512"),
        (number(None), "unknown"),
        (plural(1, "record"), "1 record"),
        (plural(2000, "batch", "batches"), "2,000 batches"),
        (size(0), "0 bytes"),
        (size(1), "1 byte"),
        (size(999), "999 bytes"),
        (size(1000), "1.0 kB"),
        (size(3_400_000), "3.4 MB"),
        (size(33_000_000), "33 MB"),
        (size(999_960), "1.0 MB"),
        (size(None), "unknown"),
        (rate(14_210.4), "14,210/s"),
        (rate(0.42), "0.4/s"),
        (rate(None), ""),
        (duration(0), "0 s"),
        (duration(0.01), "< 0.1 s"),
        (duration(11.84), "11.8 s"),
        (duration(59.97), "1 min 00 s"),
        (duration(125), "2 min 05 s"),
        (duration(3599.9), "1 h 00 min"),
        (duration(86_399), "1 d 0 h"),
        (duration(None), "unknown"),
        (about(12.3), "12 s"),
        (about(125), "2 min 05 s"),
        (clock(27), "0:27"),
        (clock(3723), "1:02:03"),
        (share(1489, 1512), "98 %"),
        (share(0, 5), "0 %"),
        (share(5, 5), "100 %"),
        (share(1, 5000), "< 1 %"),
        (share(4999, 5000), "> 99 %"),
        (share(0, 0), ""),
    ],
)
def test_amounts_read_as_people_say_them(found: str, expected: str) -> None:
    assert found == expected


def test_a_moment_is_shown_in_utc_without_fractions() -> None:
    assert moment("2026-11-23T10:15:00.250+02:00") == "2026-11-23 08:15:00 UTC"
    assert moment("2026-11-23T10:15:00Z") == "2026-11-23 10:15:00 UTC"
    assert moment("") == ""


def test_a_value_is_one_short_line() -> None:
    assert shown_value('a "b"\n') == '"a \\"b\\"\\n"'
    assert shown_value({"a": [1, None]}) == "{'a': [1, None]}"
    assert len(shown_value(list(range(1000)))) == 60
    assert len(shown_value("x" * 1000)) < 100
