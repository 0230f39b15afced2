"""Where the files are that people read and the product uses: ``schemas/`` and ``transforms/``.

An installed wheel carries its own copies beneath this package.  A checkout has
them at its top; there a stray folder of the same name in somebody's
site-packages must not be mistaken for ours, so ``pyproject.toml`` has to stand
beside it.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def schemas() -> Path:
    """The folder of the JSON Schemas."""
    return folder("schemas", _PACKAGE)


def transforms() -> Path:
    """The folder of the transform library."""
    return folder("transforms", _PACKAGE)


def folder(name: str, package: Path) -> Path:
    """Folder *name* as it belongs to the *package* in that place.

    Raises:
        FileNotFoundError: The installation is incomplete.
    """
    bundled = package / "_bundled" / name
    if bundled.is_dir():
        return bundled
    checkout = package.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / name).is_dir():
        return checkout / name
    raise FileNotFoundError(f"this installation lacks {bundled}; install the package again")
