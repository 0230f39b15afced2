"""Move collections between vector databases by a reviewed plan, and prove the result.

The command line is a thin layer over this module::

    from runner import load_plan, to_markdown

    plan = load_plan("plans/docs.yaml")
    print(to_markdown(plan.dry_run()))
    result = plan.run(progress=print)

What commands return is in `runner.results`, what they raise in `runner.errors`.
Nothing heavy is imported until it is needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from runner.api import Plan, SeveralPlan, load_any, load_plan
    from runner.copy.retry import Stop
    from runner.model import Batch, Metadata
    from runner.records import write_records
    from runner.report.html import to_html
    from runner.report.markdown import to_markdown
    from runner.report.progress import ProgressEvent
    from runner.steps.compile import Compiled

__all__ = [
    "Batch",
    "Compiled",
    "Metadata",
    "Plan",
    "ProgressEvent",
    "SeveralPlan",
    "Stop",
    "__version__",
    "load_any",
    "load_plan",
    "to_html",
    "to_markdown",
    "write_records",
]

_MODULES = {
    "Batch": "runner.model",
    "Compiled": "runner.steps.compile",
    "Metadata": "runner.model",
    "Plan": "runner.api",
    "ProgressEvent": "runner.report.progress",
    "SeveralPlan": "runner.api",
    "Stop": "runner.copy.retry",
    "load_any": "runner.api",
    "load_plan": "runner.api",
    "to_html": "runner.report.html",
    "to_markdown": "runner.report.markdown",
    "write_records": "runner.records",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'runner' has no attribute {name!r}")
