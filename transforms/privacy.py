"""Values that should not travel: hash, redact."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable
from typing import Any, Literal

from runner.transform import (
    MetadataTransform,
    TransformArgsError,
    UnfitValueError,
    each_matching,
    kind_in_words,
    transform,
)


@transform("hash")
def hash_(
    fields: list[str],
    algorithm: Literal["sha256", "sha512", "blake2b"] = "sha256",
    salt: str = "",
) -> MetadataTransform:
    """Replace values by their hash in hex; with *salt*, by an HMAC under it as the key.

    Texts are hashed as UTF-8, other values as canonical JSON; null stays null.  Without a
    salt anybody can try out likely values.
    """
    key = salt.encode()

    def digest(value: Any) -> str:
        text = value if type(value) is str else json.dumps(
            value, ensure_ascii=False, separators=(",", ":"), sort_keys=True
        )  # fmt: skip
        if key:
            return hmac.new(key, text.encode(), algorithm).hexdigest()
        return hashlib.new(algorithm, text.encode()).hexdigest()

    return each_matching(fields, digest, f"{algorithm} of the value")


@transform("redact")
def redact(
    fields: list[str], with_: str | None = "[redacted]", pattern: str | None = None
) -> MetadataTransform:
    """Put *with* in place of values, or of every match of the regular expression *pattern*.

    With a pattern, a value that is neither text nor a list of texts fails: it may hold what
    the pattern looks for in another form.
    """
    if pattern is None:
        return each_matching(fields, lambda _: with_, "redacted")
    if with_ is None:
        raise TransformArgsError("a part of a text cannot become null", at=("with",))
    try:
        expression = re.compile(pattern)
    except re.error as error:
        what = f"is not a regular expression: {error}"
        raise TransformArgsError(what, at=("pattern",)) from error
    return each_matching(fields, _masked(expression, with_), "parts redacted")


def _masked(expression: re.Pattern[str], mask: str) -> Callable[[Any], Any]:
    def in_text(value: Any) -> str:
        if type(value) is not str:
            raise UnfitValueError(f"is or holds {kind_in_words(value)}; a pattern needs text")
        return expression.sub(lambda _: mask, value)

    def apply(value: Any) -> Any:
        return [in_text(each) for each in value] if type(value) is list else in_text(value)

    return apply
