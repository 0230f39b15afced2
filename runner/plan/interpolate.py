"""References in a plan's texts: ``${NAME}``, ``${file:path}``, ``${var:key}``; ``$${`` is ``${``.

What is put in is never looked at again: a password with ``${`` in it is safe.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

MAX_FILE_BYTES = 1 << 20

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VAR = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_OPENING = re.compile(r"\$\$\{|\$\{")


class Kind(Enum):
    """Where a reference's text comes from."""

    ENVIRONMENT = "environment"
    FILE = "file"
    VARIABLE = "var"


@dataclass(frozen=True)
class Reference:
    """One ``${…}``.

    Attributes:
        kind: Where its text comes from.
        name: The environment variable, the path, or the key.
    """

    kind: Kind
    name: str

    def __str__(self) -> str:
        prefix = "" if self.kind is Kind.ENVIRONMENT else f"{self.kind.value}:"
        return f"${{{prefix}{self.name}}}"


class BadReferenceError(Exception):
    """A reference is written wrongly, or what it names is not there.

    Attributes:
        what: What is wrong; never a value.
        hint: What to do.
        unset: What it names is merely not there: another machine may have it.
    """

    def __init__(self, what: str, hint: str = "", *, unset: bool = False) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint
        self.unset = unset


Part = str | Reference


def split(text: str) -> list[Part]:
    """*text* as literal pieces and references, in order; escapes undone.

    Raises:
        BadReferenceError: A reference is not closed, or names nothing that could exist.
    """
    parts: list[Part] = []
    at = 0
    literal = ""
    for opening in _OPENING.finditer(text):
        if opening.start() < at:
            continue  # inside the reference before it, which then is refused
        literal += text[at : opening.start()]
        at = opening.end()
        if opening.group() == "$${":
            literal += "${"
            continue
        end = text.find("}", at)
        if end < 0:
            raise BadReferenceError(
                "`${` is not closed", "close it with `}`, or write `$${` for `${`"
            )
        if literal:
            parts.append(literal)
            literal = ""
        parts.append(_reference(text[at:end]))
        at = end + 1
    literal += text[at:]
    if literal or not parts:
        parts.append(literal)
    return parts


def _reference(inside: str) -> Reference:
    kind, colon, name = inside.partition(":")
    if not colon and _NAME.fullmatch(inside):
        return Reference(Kind.ENVIRONMENT, inside)
    if colon and kind == "file" and name.strip():
        return Reference(Kind.FILE, name.strip())
    if colon and kind == "var" and _VAR.fullmatch(name):
        return Reference(Kind.VARIABLE, name)
    if colon and name.startswith(("-", "=", "?", "+")):
        raise BadReferenceError(
            f"`${{{inside}}}` has a default; references have none",
            f"write `${{var:{kind}}}`, and its default under `vars`",
        )
    raise BadReferenceError(
        f"`${{{inside}}}` is not a reference",
        "write `${NAME}`, `${file:path}` or `${var:key}`, or `$${` for a plain `${`",
    )


def read_file(path: Path, most: int) -> bytes:
    """The first *most* bytes of a file.

    Raises:
        OSError: It cannot be read, or is a pipe or a device.
    """
    # A pipe that nobody writes to would otherwise be waited for.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
        return file.read(most)


@dataclass
class Values:
    """Where references are looked up.

    Attributes:
        folder: Files are relative to it.
        environ: Environment variables.
        variables: Keys of ``${var:…}`` → their text.
    """

    folder: Path
    environ: Mapping[str, str] = field(repr=False)
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)

    def look_up(self, reference: Reference) -> str:
        """The text behind *reference*.

        Raises:
            BadReferenceError: There is none, or it is not text.
        """
        match reference.kind:
            case Kind.ENVIRONMENT:
                return self._environment(reference)
            case Kind.FILE:
                return self._file(reference)
            case Kind.VARIABLE:
                return self._variable(reference)

    def _environment(self, reference: Reference) -> str:
        text = self.environ.get(reference.name)
        if text is None:
            raise BadReferenceError(
                f"{reference} is not set in the environment",
                f"set it: export {reference.name}=…",
                unset=True,
            )
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise BadReferenceError(f"{reference} is not UTF-8")
        return text

    def _file(self, reference: Reference) -> str:
        path = self.folder / os.path.expanduser(reference.name)
        try:
            raw = read_file(path, MAX_FILE_BYTES + 1)
            text = raw.decode()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BadReferenceError(
                f"{reference}: there is no such file",
                "the path is relative to the plan",
                unset=True,
            ) from error
        except OSError as error:
            raise BadReferenceError(
                f"{reference}: {error.strerror}", unset=isinstance(error, PermissionError)
            ) from error
        except UnicodeDecodeError as error:
            raise BadReferenceError(f"{reference}: the file is not a text in UTF-8") from error
        if len(raw) > MAX_FILE_BYTES:
            raise BadReferenceError(
                f"{reference}: the file is larger than {MAX_FILE_BYTES:,} bytes"
            )
        if "\0" in text:
            raise BadReferenceError(f"{reference}: the file holds U+0000")
        return text.removesuffix("\n").removesuffix("\r")

    def _variable(self, reference: Reference) -> str:
        text = self.variables.get(reference.name)
        if text is None:
            near = difflib.get_close_matches(reference.name, list(self.variables), 1)
            raise BadReferenceError(
                f"{reference} is not set",
                f"did you mean `${{var:{near[0]}}}`?"
                if near
                else f"give it: --var {reference.name}=…, or write it under `vars`",
                unset=True,
            )
        return text
