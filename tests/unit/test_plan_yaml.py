"""YAML text → nodes: words of the 1.2 core schema, places, hostile input."""

from __future__ import annotations

import json
import math

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from runner.plan.yaml_text import (
    MAX_DEPTH,
    Items,
    Mapping,
    Node,
    Scalar,
    YamlTextError,
    core_value,
    decode,
    parse,
)


@pytest.mark.parametrize(
    "word",
    [
        "no", "off", "yes", "on", "Y", "n", "1:30", "010", "-007", "00", "2024-01-01", "0b11",
        "1_000", "0o8", "0xg", "1.2.3", "+", "-", ".", "e3", "tRUE", "nUll", "1e", "08.5", "=", "١",
    ],
)  # fmt: skip
def test_these_stay_words(word: str) -> None:
    assert core_value(word) == word


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("0", 0), ("-12", -12), ("+3", 3), ("0o17", 15), ("0xFf", 255),
        ("1e3", 1000.0), ("-.5", -0.5), ("1.", 1.0), ("2.50E-1", 0.25), ("-0", 0),
    ],
)  # fmt: skip
def test_these_mean_more_than_their_letters(word: str, value: object) -> None:
    found = core_value(word)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("word", [".inf", "-.INF", ".nan", "1e999"])
def test_numbers_that_are_not_finite_are_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"not finite|beyond"):
        core_value(word)


@given(st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False))
def test_json_scalars_mean_the_same_without_quotes(value: object) -> None:
    found = core_value(json.dumps(value))
    assert found == value
    assert type(found) is type(value)


@given(st.text())
def test_any_text_is_a_word_a_scalar_or_refused(text: str) -> None:
    try:
        value = core_value(text)
    except ValueError:
        return
    assert not isinstance(value, float) or math.isfinite(value)
    assert not isinstance(value, str) or value == text


_TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
_VALUES = st.recursive(
    _TEXTS | st.integers() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=4),
    max_leaves=12,
)


def _plain(node: Node) -> object:
    if isinstance(node, Mapping):
        return {key: _plain(each) for key, each in node.entries.items()}
    if isinstance(node, Items):
        return [_plain(each) for each in node.items]
    return node.value()


@given(_VALUES)
def test_json_is_read_as_what_it_is(value: object) -> None:
    assert _plain(parse(json.dumps(value))) == value


@pytest.mark.parametrize(
    "reference",
    ["${A}", "$${A}", "${file:a b/c.txt}", "${file:/etc/key}", "${var:a.b-c}", "${A:-x}", "${}",
     "a${B}c${D}e", "${ A }", "${file:}"],
)  # fmt: skip
def test_a_reference_needs_no_quotes_in_flow_style(reference: str) -> None:
    tree = parse(f"{{a: {reference}, b: [{reference}, {{{reference}: &x {reference}}}, *x], c: 1}}")
    assert _plain(tree) == {
        "a": reference,
        "b": [reference, {reference: reference}, reference],
        "c": 1,
    }
    assert isinstance(tree, Mapping)
    assert tree.key_places["c"] == (1, len(f"{{a: , b: [, {{: &x }}, *x], {reference * 4}") + 1)


@pytest.mark.parametrize(
    ("reference", "column"),
    [("${file:a, b}", 3), ("${A", 3), ("${file:it's}", 3), ("${a: b}", 3), ("${A #}", 3)],
)
def test_what_flow_style_takes_for_its_own_is_refused_at_the_brace(
    reference: str, column: int
) -> None:
    error = _refused(f"[{reference}, c: 1]")
    assert (error.line, error.column) == (1, column)
    assert error.hint.startswith("close the reference with `}`")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{a: '$${x', b: '}'}", {"a": "$${x", "b": "}"}),
        ("{a: 1, # ${x}\n b: 2}", {"a": 1, "b": 2}),
        ("a: |\n  ${A} {b}\n", {"a": "${A} {b}\n"}),
        ("a: ${A} # }", {"a": "${A}"}),
    ],
)
def test_quotes_comments_and_blocks_are_what_they_were(text: str, value: object) -> None:
    assert _plain(parse(text)) == value


_PIECES = [
    *"${}[],:#'\"| \n-", "a", "${", "${A}", "$${", ": ", " #", "'${", "', ", "'}'", '"${', '", ',
    '"}"', "{a: ", ", b: ", "\ue000", r'"\ue000', "&x ", "*x",
]  # fmt: skip


@given(st.lists(st.sampled_from(_PIECES), max_size=12).map("".join))
@example("{a: '${'}")
def test_what_bare_yaml_reads_is_read_the_same(text: str) -> None:
    try:
        expected = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, TypeError):  # of a key that is a list
        return
    try:
        found = parse(text)
    except YamlTextError as error:
        if isinstance(error.__cause__, yaml.YAMLError):
            raise
        return  # a rule of ours
    assert _texts(found) == expected


def _texts(node: Node) -> object:
    if isinstance(node, Mapping):
        return {key: _texts(each) for key, each in node.entries.items()}
    if isinstance(node, Items):
        return [_texts(each) for each in node.items]
    return node.text


@pytest.mark.parametrize("taken", ["\ue000\ue001", '"\\ue000\\uE001\\U0000e002"', "'\\ue000'"])
def test_letters_that_could_stand_for_braces_stay_themselves(taken: str) -> None:
    expected = yaml.safe_load(taken)
    assert _plain(parse(f"[{taken}, ${{A}}, {taken}]")) == [expected, "${A}", expected]


def test_letters_that_a_fold_puts_together_stay_themselves() -> None:
    code = r'"\\ue\
000"'
    assert _plain(parse(f"[{code}, ${{A}}]")) == [r"\ue000", "${A}"]


def test_a_text_that_leaves_no_letter_free_needs_quotes() -> None:
    everything = "".join(map(chr, range(0xE000, 0xF900)))
    assert _plain(parse(f'["${{A}}", {everything}]')) == ["${A}", everything]
    assert _refused(f"[${{A}}, {everything}]").column == 3


def test_messages_show_the_braces_as_written() -> None:
    assert _refused("{a: !b${A}}").what.startswith("expected ' ', but found '{'")


def _faulty_place(raw: bytes) -> tuple[int, int] | None:
    try:
        parse(decode(raw))
    except YamlTextError as error:
        return error.line, error.column
    return None


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_parsed_or_refused_at_a_place(raw: bytes) -> None:
    place = _faulty_place(raw)
    assert place is None or min(place) >= 1


@given(st.text(alphabet="ab:-[]{},&*!|>'\"#%@` \n\t?<~", max_size=60))
def test_any_punctuation_is_parsed_or_refused_at_a_place(text: str) -> None:
    place = _faulty_place(text.encode())
    assert place is None or min(place) >= 1


def _refused(text: str) -> YamlTextError:
    with pytest.raises(YamlTextError) as caught:
        parse(text)
    return caught.value


def test_values_and_keys_know_their_places() -> None:
    tree = parse('a: 1\nb:\n  - "x"\n  - {c: ä, d: y}\n')
    assert isinstance(tree, Mapping)
    assert tree.key_places == {"a": (1, 1), "b": (2, 1)}
    items = tree.entries["b"]
    assert isinstance(items, Items)
    assert [(each.line, each.column) for each in items.items] == [(3, 5), (4, 5)]
    inner = items.items[1]
    assert isinstance(inner, Mapping)
    assert inner.key_places == {"c": (4, 6), "d": (4, 12)}
    assert inner.entries["d"] == Scalar("y", True, 4, 15)


def test_an_alias_bomb_is_refused_before_it_is_built() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 9):
        aliases = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} [{aliases}]")
    assert "aliases followed" in _refused("\n".join(lines)).what


def test_a_chain_of_aliases_is_as_deep_as_what_it_stands_for() -> None:
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, MAX_DEPTH + 5))]
    assert "deeper" in _refused("\n".join(lines)).what


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_a_hundred_thousand_levels_are_refused(opening: str) -> None:
    assert "deeper" in _refused(opening * 100_000).what


def test_the_deepest_allowed_nesting_is_read() -> None:
    parse("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert "deeper" in _refused("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)).what


def test_too_many_values_are_refused() -> None:
    assert "more than" in _refused("[" + "1," * 100_001 + "]").what


@pytest.mark.parametrize("key", ["a", '"a"', "'a'"])
def test_a_key_given_twice_is_refused_however_it_is_quoted(key: str) -> None:
    error = _refused(f"a: 1\n{key}: 2\n")
    assert (error.line, error.column) == (2, 1)
    assert "twice" in error.what


@pytest.mark.parametrize("text", ["[a]: 1", "{a: b}: 1", "a: &x b\n*x : 1"])
def test_a_key_that_is_no_word_is_refused(text: str) -> None:
    assert "a key is a word" in _refused(text).what


@pytest.mark.parametrize("text", [r'"\0"', r'"a\x00b"', r'"\ud800"', r'{"\udc00\ud800": 1}'])
def test_escapes_that_make_no_character_are_refused(text: str) -> None:
    assert "character" in _refused(text).what


def test_an_alias_of_nothing_is_refused() -> None:
    assert "no anchor" in _refused("a: *b").what


def test_an_anchor_given_again_names_the_later_value() -> None:
    assert _plain(parse("[&a 1, &a 2, *a]")) == [1, 2, 2]


def test_a_byte_order_mark_is_left_out() -> None:
    tree = parse(decode(b"\xef\xbb\xbfa: 1"))
    assert isinstance(tree, Mapping)
    assert tree.key_places == {"a": (1, 1)}


@pytest.mark.parametrize(
    ("raw", "line", "column", "what"),
    [
        ("a: 1".encode("utf-16"), 1, 1, "UTF-16"),
        (b"a: 1\nb: \xe9\n", 2, 4, "0xe9"),
        ("ä: ".encode() + b"\xff", 1, 4, "0xff"),
        (b"a: 1\nb: x\x00y", 2, 5, "U+0000"),
        (b"a: \x1b[31m", 1, 4, "U+001B"),
        ("a: 1\nb: \ufeff".encode(), 2, 4, "U+FEFF"),
        (b"#" * (1 << 20) + b"#", 1, 1, "larger"),
    ],
)
def test_bytes_that_are_no_plan_are_refused_at_their_place(
    raw: bytes, line: int, column: int, what: str
) -> None:
    with pytest.raises(YamlTextError) as caught:
        parse(decode(raw))
    assert (caught.value.line, caught.value.column) == (line, column)
    assert what in caught.value.what
