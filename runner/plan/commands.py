"""What to type next: the commands about a plan, with the options that it was loaded with."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from runner.plan.model import PlanDocument
from runner.plan.redact import MASK, Redactor

_COMMANDS = re.compile(
    r"`(?:runner (?P<other>resume|rollback|verify|report|status|finalise|inspect)|run)(?: …)?"
    r"(?P<more>(?: --[^`]*)?)`"
)


@dataclass(frozen=True)
class Given:
    """What a plan was loaded with besides its file, as `load_plan` has it."""

    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    state_dir: str | None = None
    limit: int | None = None
    only: str = ""


class Commands:
    """The commands about one plan.

    Args:
        document: The plan.
        given: What it was loaded with besides.
        redactor: Knows its secrets.
    """

    def __init__(self, document: PlanDocument, given: Given, redactor: Redactor) -> None:
        self._document = document
        self._given = given
        self._redactor = redactor

    def line(self, name: str, *more: str) -> str:
        """The command *name* for this plan, with the options it was loaded with; for a shell.

        Args:
            name: ``run``, ``resume``, ``rollback`` …
            more: Further options.
        """
        words = ["run"] if name == "run" else ["runner", name]
        words.append(self._document.file)
        for key, value in self._given.variables.items():
            secret = value in self._document.secrets or self._redactor.text(value) != value
            words += ["--var", f"{key}={MASK if secret else value}"]
        if self._given.state_dir is not None:
            words += ["--state-dir", self._given.state_dir]
        if self._given.only:
            words += ["--only", self._given.only]
        if self._given.limit is not None and name == "run":
            words += ["--limit", str(self._given.limit)]
        return shlex.join([*words, *more])

    def hint(self, text: str) -> str:
        """A hint with its ```runner resume``` and the like said as `line` says them."""
        return _COMMANDS.sub(
            lambda found: f"`{self.line(found['other'] or 'run', *found['more'].split())}`", text
        )
