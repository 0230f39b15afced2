"""Move collections between vector databases by a reviewed plan, and prove the result.

The command line is a thin layer over this module::

    from runner import load_plan

    plan = load_plan("plans/docs.yaml")
    print(plan.dry_run().to_markdown())
    result = plan.run(progress=print)

Nothing heavy is imported until it is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from runner.api import Plan, load_plan

__all__ = ["Plan", "__version__", "load_plan"]


def __getattr__(name: str) -> Any:
    if name in ("load_plan", "Plan"):
        from runner import api

        return getattr(api, name)
    raise AttributeError(f"module 'runner' has no attribute {name!r}")
