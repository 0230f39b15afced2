"""Who acts: for the audit."""

from __future__ import annotations

import getpass
import os
import platform

from runner import __version__


def actor(command: str) -> dict[str, str]:
    """Who gives *command*, on which host, with which version."""
    return {
        "command": command,
        "user": user_name(),
        "host": platform.node(),
        "runner": __version__,
    }


def user_name() -> str:
    """The user's name, or number where the system has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"
