"""Keeps secrets out of what is printed, logged and written."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import wraps
from inspect import signature
from typing import Any, TypeVar
from urllib.parse import quote, quote_plus, unquote

from runner import results
from runner.errors import PartialWriteError, PlanError, RunnerError
from runner.results import redacted

T = TypeVar("T")

MASK = "***"

_SHORT = 4
# scheme://user:password@host, up to the last @ before the path; also where nobody named it.
_URL_PASSWORD = re.compile(r"(?P<keep>\b[A-Za-z][A-Za-z0-9+.-]*://[^\s/?#:@]*:)[^\s/]+(?=@)")
# libpq's key=value form and URL parameters: password=…, password = 'it\'s'.
_ASSIGNED_PASSWORD = re.compile(
    r"(?P<keep>\b(?:ssl)?password\s*=\s*)(?:'(?:[^'\\]|\\.)*'|(?:[^\s&'\"\\]|\\.)+)",
    re.IGNORECASE,
)


class Redactor(logging.Filter):
    """Replaces secrets by ``***``; as a logging filter, in everything a record says.

    Args:
        secrets: What must not be shown.  Each is also found as it looks inside a URL, in
            JSON and in Python's quotes.  One of fewer than four characters is only
            replaced where values stand: in quotes, after ``=``, ``:`` or ``Bearer``; else
            nothing would be readable.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        forms = {form for secret in secrets if secret for form in _forms(secret)}
        # The longest first: a connection string goes as one, not as the password inside it.
        patterns = [_pattern(form) for form in sorted(forms, key=lambda form: (-len(form), form))]
        self._secrets = re.compile("|".join(patterns)) if patterns else None

    def text(self, text: str) -> str:
        """*text* without secrets."""
        if self._secrets is not None:
            text = self._secrets.sub(MASK, text)
        text = _URL_PASSWORD.sub(rf"\g<keep>{MASK}", text)
        return _ASSIGNED_PASSWORD.sub(rf"\g<keep>{MASK}", text)

    def result(self, value: T) -> T:
        """A result, an event or JSON values, without secrets."""
        return redacted(value, self.text)

    def error(self, error: BaseException) -> None:
        """Redact *error* in place, and what led to it."""
        pending: list[BaseException | None] = [error]
        seen = set()
        while pending:
            each = pending.pop()
            if each is None or id(each) in seen:
                continue
            seen.add(id(each))
            pending += [each.__cause__, each.__context__]
            each.args = tuple(self.result(list(each.args)))
            if isinstance(each, RunnerError):
                each.what, each.hint = self.text(each.what), self.text(each.hint)
            if isinstance(each, PlanError):
                each.problems = tuple(
                    replace(problem, what=self.text(problem.what), hint=self.text(problem.hint))
                    for problem in each.problems
                )
            if isinstance(each, PartialWriteError):
                each.failed = self.result(each.failed)

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact *record* in place, its traceback included; it is always kept."""
        record.msg = self.text(record.getMessage())
        record.args = None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = self.text(record.exc_text)
        if record.stack_info:
            record.stack_info = self.text(record.stack_info)
        return True

    def __repr__(self) -> str:
        return "Redactor(…)"


def nothing_secret_leaves(cls: type[T]) -> type[T]:
    """Every public method returns, tells (`progress`) and raises without secrets.

    Objects of *cls* have a `redactor`, and a `hint` that says hints of errors in full.
    """
    for name, method in list(vars(cls).items()):
        if not name.startswith("_") and name != "hint" and callable(method):
            setattr(cls, name, _redacting(method))
    return cls


def _redacting(method: Callable[..., Any]) -> Callable[..., Any]:
    parameters = signature(method)

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        redactor: Redactor = self.redactor
        given = parameters.bind(self, *args, **kwargs)
        if progress := given.arguments.get("progress"):
            given.arguments["progress"] = lambda event: progress(redactor.result(event))
        try:
            found = method(*given.args, **given.kwargs)
        except BaseException as error:
            redactor.error(error)
            if isinstance(error, RunnerError):
                error.hint = self.hint(error.hint)
            raise
        return redactor.result(found) if type(found).__module__ == results.__name__ else found

    return call


def passwords_in(address: str) -> list[str]:
    """The passwords inside a URL or a libpq connection string, as written and unquoted."""
    found = [match.group()[len(match["keep"]) :] for match in _URL_PASSWORD.finditer(address)]
    for match in _ASSIGNED_PASSWORD.finditer(address):
        value = match.group()[len(match["keep"]) :]
        found.append(re.sub(r"\\(.)", r"\1", value[1:-1] if value.startswith("'") else value))
    return list(dict.fromkeys(form for each in found for form in (each, unquote(each)) if form))


def _forms(secret: str) -> set[str]:
    return {
        secret,
        quote(secret, safe=""),
        quote(secret),
        quote_plus(secret),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        repr(secret)[1:-1],
    }


def _pattern(form: str) -> str:
    escaped = re.escape(form)
    if len(form) >= _SHORT:
        return escaped
    return rf"(?:(?<=[\"'`=:])|(?<=Bearer )){escaped}(?!\w)"
