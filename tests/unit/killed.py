"""Kills a function at every point at which it makes something durable, and repeats it.

It all happens in one process that imports once and forks for each call: test processes
have threads, and do not fork.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def killed_everywhere(work: Callable[[Path], None], folder: Path, name: str) -> int:
    """Let *work* write to ``folder/N/name``, killed before its N-th effect and called again.

    Effects are syncs and renames; ``folder/0/name`` is written undisturbed.

    Args:
        work: A function of a module.
        folder: Empty.
        name: The last part of the paths.

    Returns:
        How many effects there are: the last N.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.killed", work.__module__, work.__name__, folder, name],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


# in the process that forks


def _count_effects(fatal: int) -> None:
    passed = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal passed
            passed += 1
            if passed == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return call

    os.fsync = counted(os.fsync)
    os.replace = counted(os.replace)


def _ends(work: Callable[[Path], None], path: Path, fatal: int = 0) -> bool:
    """Whether *work* came to its end in a process of its own; it may only be killed."""
    child = os.fork()
    if not child:
        _count_effects(fatal)
        work(path)
        sys.exit()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL)
    return code == 0


def main() -> None:
    """What `killed_everywhere` starts."""
    module, function, folder, name = sys.argv[1:]
    work = getattr(import_module(module), function)
    assert _ends(work, Path(folder, "0", name))
    point = 1
    while not _ends(work, path := Path(folder, str(point), name), point):
        assert _ends(work, path)
        point += 1
    print(point - 1)


if __name__ == "__main__":
    main()
