"""Templates show what a record has, and can do nothing else."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import PlanError, RunnerError, TransformError
from runner.templating import MAX_OUTPUT_BYTES, compile_template

RECORD: dict[str, Any] = {
    "id": 7,
    "document": "Some text",
    "metadata": {"slug": "a b", "year": 2024, "flag": True, "none": None, "items": ["x", 1]},
    "namespace": "tenant",
}


def render(text: str, record: dict[str, Any] = RECORD) -> str:
    return compile_template(text)(record)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://example.org/{{ metadata.slug | urlencode }}", "https://example.org/a%20b"),
        ("{{ id }}@{{ namespace }}", "7@tenant"),
        ("{{ document | upper | truncate(6) }}", "SOME …"),
        ("{{ metadata.year + 1 }}", "2025"),
        ("{{ metadata['year'] // 10 * 10 }}s", "2020s"),
        ("{{ metadata.flag }}", "true"),
        ("{{ metadata.items }}", '["x",1]'),
        ("{{ metadata.items | join('-') }}", "x-1"),
        ("{{ metadata.absent | default('?') }}", "?"),
        ("{{ metadata.none | default('?', true) }}", "?"),
        ("{{ 'new' if metadata.year > 2020 else 'old' }}", "new"),
        ("{{ metadata.slug ~ '/' ~ (id ~ '!') }}", "a b/7!"),
        ("{{ document.split(' ')[0].lower() }}", "some"),
        ("{{ metadata.slug.replace(' ', '-') }}", "a-b"),
        ("{{ 'yes' if metadata.absent is defined else 'no' }}", "no"),
        ("{# said by the author #}line\n", "line\n"),
        ("", ""),
    ],
)
def test_a_template_shows_what_the_record_has(text: str, expected: str) -> None:
    assert render(text) == expected


def test_a_field_wins_over_a_method_of_python() -> None:
    assert render("{{ metadata.keys }}", {**RECORD, "metadata": {"keys": "mine"}}) == "mine"


def test_an_undefined_field_is_named_with_what_there_is() -> None:
    with pytest.raises(TransformError) as caught:
        render("{{ metadata.slog }}")
    assert caught.value.what == "`slog` is undefined; there is flag, items, none, slug, year"


def test_null_is_not_written_as_a_word() -> None:
    with pytest.raises(TransformError, match="null"):
        render("{{ metadata.none }}")


def test_a_failure_does_not_quote_the_value() -> None:
    with pytest.raises(TransformError) as caught:
        render("{{ metadata.secret | int }}", {**RECORD, "metadata": {"secret": "hunter2"}})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ meta.slug }}", "did you mean `metadata`?"),
        ("{{ slug }}", "fields are written `metadata.slug`"),
        ("{{ document | uper }}", "did you mean `upper`?"),
        ("{{ document.strp() }}", "did you mean `strip`?"),
        ("{% for x in metadata %}{{ x }}{% endfor %}", "has a statement"),
        ("{% raw %}{{ }}{% endraw %}", "has a statement"),
        ("{{ metadata.slug", "not a template"),
        ("{{ document | upper(*metadata.items) }}", "before arguments"),
        ("{{ range(3) }}", "only methods of texts"),
    ],
)
def test_what_is_wrong_is_told_before_anything_runs(text: str, expected: str) -> None:
    with pytest.raises(PlanError) as caught:
        compile_template(text)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "{{ 'a' * 10**8 }}",
        "{{ 9 ** 9 ** 9 ** 9 ** 9 }}",
        "{{ 2 ** 100000 }}",
        "{{ 10 ** -5000 ** 3 }}",
        "{{ '%100000000d' % 1 }}",
        "{{ 'a'.ljust(10**8) }}",
        "{{ metadata.slug.zfill(100000000) }}",
        "{{ 'a' | center(10**8) }}",
        "{{ 'a' | indent(10**8) }}",
        "{{ '{:100000000}'.format(1) }}",
        "{{ '%100000000d' | format(1) }}",
        "{{ document" + ".replace('', document)" * 9 + " }}",
        "{{ [1] * 10**8 }}",
        "{{ range(10**9) }}",
        "{{ lipsum(n=1000) }}",
        "{{ document" + " ~ document" * 400 + " ~ document * 2 }}",
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{{ " + "-" * 3000 + "1 }}",
        "{{ " + "[" * 100 + "]" * 100 + " }}",
        "{{ metadata" + ".a" * 3000 + " }}",
        "{{ 1" + " + 1" * 3000 + " }}",
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ metadata.x.__init__ }}",
        "{{ metadata.__class__ }}",
        "{{ metadata['__class__'] }}",
        "{{ metadata.slug['__class__'] }}",
        "{{ metadata.year.real }}",
        "{{ metadata.items.append(1) }}",
        "{{ metadata.update({'a': 1}) }}",
        "{{ document | attr('__class__') }}",
        "{{ metadata.items | map('upper') }}",
        "{{ [metadata] | sum(attribute='__class__') }}",
        "{{ [metadata.slug, id] | max(attribute='__class__') }}",
        "{{ document.upper }}",
        "{{ self }}",
        "{{ cycler('a') }}",
        "{{ namespace() }}",
        "{{ '\\ud800' }}",
        "{{ 1 / 0 }}",
        "{{ 1e308 * 10 }}",
        "{% set x = 'a' %}{{ x }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)  # fmt: skip
def test_a_hostile_template_ends_in_a_clean_error(text: str) -> None:
    """Never in memory used up: the suite's timeout and limits would tell."""
    record = {**RECORD, "document": "x" * 1000}
    with pytest.raises(RunnerError):
        render(text, record)


def test_output_is_capped() -> None:
    longest = {**RECORD, "document": "x" * MAX_OUTPUT_BYTES}
    assert len(render("{{ document }}", longest)) == MAX_OUTPUT_BYTES
    with pytest.raises(TransformError, match="64 KiB"):
        render("{{ document }}!", longest)


def test_output_is_counted_in_bytes() -> None:
    with pytest.raises(TransformError, match="64 KiB"):
        render("{{ document }}", {**RECORD, "document": "é" * (MAX_OUTPUT_BYTES // 2 + 1)})


@given(st.text(max_size=200))
def test_any_text_of_a_record_comes_out_as_it_is(text: str) -> None:
    assert render("{{ document }}", {**RECORD, "document": text}) == text


@given(st.text(alphabet="{}%#'\"()[].|~*+-0123456789 abdeimnostu_\n", max_size=60))
def test_any_template_renders_or_says_what_is_wrong(text: str) -> None:
    with suppress(RunnerError):  # and nothing else
        assert isinstance(render(text), str)
