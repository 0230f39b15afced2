"""Secrets do not get out."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import PlanError, Problem
from runner.plan.redact import Redactor, nothing_secret_leaves, passwords_in
from runner.results import Remark

AWKWARD = "p@ss/w'rd\\ \"ü+%"


@pytest.mark.parametrize(
    "form",
    [
        AWKWARD,
        quote(AWKWARD, safe=""),
        quote(AWKWARD),
        quote_plus(AWKWARD),
        json.dumps(AWKWARD),
        repr(AWKWARD),
    ],
)
def test_a_secret_is_found_in_every_form(form: str) -> None:
    assert "***" in Redactor([AWKWARD]).text(f"before {form} after")
    assert form.strip("'\"") not in Redactor([AWKWARD]).text(f"before {form} after")


@given(st.text(min_size=4, max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_no_secret_of_four_characters_survives(secret: str, before: str, after: str) -> None:
    redacted = Redactor([secret]).text(before + secret + after)
    assert secret not in redacted.replace("***", "\0") or set(secret) <= {"*"}


def test_a_short_secret_is_replaced_only_where_values_stand() -> None:
    text = "1 of 1512, a1, password=1 key: '1', Bearer 1, http://u:1@h, :12"
    redacted = "1 of 1512, a1, password=*** key: '***', Bearer ***, http://u:***@h, :12"
    assert Redactor(["1"]).text(text) == redacted


@nothing_secret_leaves
class _Plan:
    redactor = Redactor(["hunter2"])

    def hint(self, text: str) -> str:
        return text

    def act(self, progress: Callable[[Remark], None] | None = None) -> Remark:
        if progress:
            progress(Remark("hunter2", "told", "hunter2"))
        return Remark("at hunter2", "done", "")

    def fail(self) -> None:
        try:
            raise ValueError("hunter2 inside")
        except ValueError as error:
            problem = Problem("f", 1, 1, "", "hunter2", "hunter2")
            raise PlanError("hunter2", "no hunter2", [problem]) from error


def test_nothing_secret_is_returned_or_told() -> None:
    told: list[Remark] = []
    assert _Plan().act(told.append) == Remark("at ***", "done", "")
    assert told == [Remark("***", "told", "***")]
    assert _Plan().act() == Remark("at ***", "done", "")


def test_errors_leave_without_secrets_and_so_does_what_led_to_them() -> None:
    with pytest.raises(PlanError) as caught:
        _Plan().fail()
    assert str(caught.value.__cause__) == "*** inside"
    (problem,) = caught.value.problems
    assert (problem.what, problem.hint) == ("***", "***")
    assert str(caught.value) == "***\n  hint: no ***"


def test_what_is_acted_upon_stays_when_a_result_is_redacted() -> None:
    found = Redactor(["docs"]).result({"run": "docs", "place": "db/docs", "of": [1, "docs", None]})
    assert found == {"run": "docs", "place": "db/***", "of": [1, "***", None]}


def test_the_longest_secret_goes_first() -> None:
    assert Redactor(["word", "password"]).text("a password") == "a ***"


def test_nothing_and_empty_secrets_change_nothing() -> None:
    assert Redactor(["", ""]).text("as it was") == "as it was"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("at postgresql://app:pw@db/x", "at postgresql://app:***@db/x"),
        ("postgresql://app:p@w@db/x", "postgresql://app:***@db/x"),
        ("redis://:pw@host", "redis://:***@host"),
        ("http://proxy:3128/", "http://proxy:3128/"),
        ("http://user@host", "http://user@host"),
        ("host=db password=pw user=app", "host=db password=*** user=app"),
        (r"password = 'it\'s pw' user=a", "password = *** user=a"),
        ("postgresql://db/x?user=a&password=pw&sslmode=require",
         "postgresql://db/x?user=a&password=***&sslmode=require"),
        ("PASSWORD=pw", "PASSWORD=***"),
        ("sslpassword=pw", "sslpassword=***"),
    ],
)  # fmt: skip
def test_passwords_that_nobody_named_are_found_too(text: str, redacted: str) -> None:
    assert Redactor().text(text) == redacted


def test_passwords_are_taken_out_of_addresses_as_written_and_as_meant() -> None:
    assert passwords_in("postgresql://u:p%40w@h/d") == ["p%40w", "p@w"]
    assert passwords_in(r"host=h password='it\'s'") == ["it's"]
    assert passwords_in("host=h dbname=d") == []


def test_the_logging_filter_cleans_message_arguments_traceback_and_stack() -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.addFilter(Redactor(["hunter2"]))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    try:
        raise ValueError("connecting with hunter2 failed")
    except ValueError:
        logger.error("tried %s and %d", "hunter2", 7, exc_info=sys.exc_info(), stack_info=True)
    text = out.getvalue()
    assert "hunter2" not in text
    assert "tried *** and 7" in text
    assert "connecting with *** failed" in text
    assert "Stack (most recent call last)" in text


def test_a_redactor_does_not_show_what_it_hides() -> None:
    assert "hunter2" not in repr(Redactor(["hunter2"]))
