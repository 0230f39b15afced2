"""Passwords that a command says, for tokens that live shorter than a copy takes."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress

from runner.errors import AuthError, PlanError
from runner.model import Finding, Severity
from runner.stores.base import Location

__all__ = ["password_findings", "password_of"]

_BY_HAND = "run it by hand, as it stands in the plan"


def password_of(location: Location) -> str:
    """What the plan's ``password_command`` says now.

    A text is run by the shell, a list is run as it is.  Its output, without the end of its
    line, is the password; it is shown nowhere.  It may take as long as connecting may.

    Raises:
        AuthError: The command fails, takes too long, or says nothing that is a password.
        PlanError: There is no such command.
    """
    command = location.options["password_command"]
    place = f"{location.side}.password_command"
    timeout_s = location.connection.timeout_s
    out = _output(command, timeout_s, place)
    try:
        password = out.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        password = ""
    if not password or "\n" in password or "\x00" in password:
        said = "nothing" if not out.strip() else "something that is not one line of UTF-8 text"
        raise AuthError(
            f"pgvector: {place}: the command ended well and said {said}; expected the password",
            _BY_HAND,
        )
    return password


def password_findings(location: Location) -> list[Finding]:
    """That connecting runs a command.

    It is no hazard: whoever judges hazards has connected before, a dry run too.
    """
    command = location.options.get("password_command")
    if command is None:
        return []
    return [
        Finding(
            f"every connection runs {_shown(command)} for its password",
            severity=Severity.NOTE,
            key=f"{location.side}.password_command",
        )
    ]


def _output(command: str | Sequence[str], timeout_s: float, place: str) -> bytes:
    """What *command* says; its whole family ends with it."""
    shell = isinstance(command, str)
    try:
        process = subprocess.Popen(
            command if shell else list(command),
            shell=shell,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what it says there may hold a secret as well
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it holds U+0000"
        raise PlanError(f"{place}: cannot be run: {reason}", _BY_HAND) from error
    with process:
        try:
            out, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise AuthError(
                f"pgvector: {place}: the command did not end within {timeout_s:g} s",
                "it may be waiting for an answer, which it cannot get: its input is empty",
            ) from None
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):  # it has just ended by itself
                    os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise AuthError(
            f"pgvector: {place}: the command ended with status {process.returncode}",
            _BY_HAND,
        )
    return out


def _shown(command: str | Sequence[str]) -> str:
    """The program alone: what follows it, and any part of a shell's command, may be secret."""
    if isinstance(command, str):
        return "a shell command"
    return f"`{command[0]}{' …' if len(command) > 1 else ''}`"
