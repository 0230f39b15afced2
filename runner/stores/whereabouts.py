"""Where a collection really is, however a plan spells it: so that two ends can be told apart."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit

__all__ = ["Whereabouts", "host_of", "overlap", "server_of"]

_THIS_HOST = frozenset({"", "localhost", "127.0.0.1", "::1"})
_ANY_FILE = "*"


@dataclass(frozen=True)
class Whereabouts:
    """What a collection takes up.

    Attributes:
        unique: Names the collection and no other; its place first (a resolved path, a
            server), then what tells it from others in the same place.
        paths: The files and folders of this machine that it lies in; patterns too.
    """

    unique: tuple[str, ...]
    paths: tuple[Path, ...] = ()

    @classmethod
    def of_files(cls, *paths: Path, within: tuple[str, ...] = ()) -> Whereabouts:
        """A collection in files or folders; *within*: what tells it from others in there."""
        resolved = tuple(each.resolve() for each in paths)
        return cls((str(resolved[0]), *within), resolved)


def server_of(url: str) -> str:
    """Host, port and path of a URL: one spelling for this machine, no user, no default."""
    parts = urlsplit(url if "//" in url else f"//{url}")
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)
    return f"{host_of(parts.hostname or '')}:{port}{parts.path.rstrip('/')}"


def host_of(name: str) -> str:
    """A host in one spelling."""
    name = name.casefold().rstrip(".")
    return "localhost" if name in _THIS_HOST else name


def overlap(one: Whereabouts, other: Whereabouts) -> str:
    """How *one*, which is read, lies in the way of *other*; empty where it does not."""
    if one.unique == other.unique:
        return "is the same collection"
    for mine in one.paths:
        for yours in other.paths:
            # several collections may live in one engine's folder
            if mine == yours and not _neighbours(one, other):
                return "is the same place"
            if mine in yours.parents:
                return "is a folder around it"
            if yours in mine.parents:
                return "lies in its folder"
            if _matches(mine, yours):
                return "is a pattern that matches it"
    return ""


def _neighbours(one: Whereabouts, other: Whereabouts) -> bool:
    return min(len(one.unique), len(other.unique)) > 1 and one.unique[0] == other.unique[0]


def _matches(pattern: Path, path: Path) -> bool:
    """Whether a glob would find the file *path*, or files in the folder *path*."""
    if not glob.has_magic(str(pattern)):
        return False
    inside = (*path.parts, "part" + pattern.suffix.replace(_ANY_FILE, ""))
    return _match(pattern.parts, path.parts) or _match(pattern.parts, inside)


def _match(pattern: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_match(pattern[1:], parts[at:]) for at in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _match(pattern[1:], parts[1:])
