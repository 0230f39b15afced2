"""The fingerprint of a plan: it changes when the result would."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner import jsonvalues
from runner.plan.model import PlanDocument
from runner.stores.base import Location

# What of a side decides about what is read or made, beyond the identity that its store tells.
# Addresses and credentials are not among them: a server may move and a key be renewed
# between a run and its resume.
_DECIDING = (
    "where", "columns", "vectors", "document_field", "metric", "index", "namespaces",
    "filter_indexes", "metadata_key", "layout", "sharding_method", "tenants", "inactive_tenants",
)  # fmt: skip


def fingerprint(document: PlanDocument, *, transforms_code: str, extra: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of all that changes what the run makes.

    Batch size, workers, thresholds, credentials, addresses, allowances and descriptions do not.

    Args:
        document: The plan.
        transforms_code: Everything that the transforms run, as text.
        extra: What else identifies the run, as JSON values: each side's
            ``endpoint(location).identity``, schemas.
    """
    deciding = {
        "source": moved_along(_side(document.source), document.path.parent),
        "target": moved_along(_side(document.target), document.path.parent),
        "limit": document.limit,
        "ids": [document.ids.kind, document.ids.field],
        "namespace_to": [document.namespace_to.kind, document.namespace_to.field],
        "fields": {
            name: [policy.type, policy.unsupported] for name, policy in document.fields.items()
        },
        "unsupported": document.unsupported,
        # left out where it is not asked for: runs that were begun before there was such a key
        **({"keep_norm": True} if document.keep_norm else {}),
        "transforms": [[step.name, step.args, step.on_error] for step in document.transforms],
        **({"part": [document.add, document.source_namespace]} if document.part else {}),
        "code": transforms_code,
        "extra": moved_along(extra, document.path.parent),
    }
    return hashlib.sha256(jsonvalues.dumps(deciding, sort_keys=True)).hexdigest()


def moved_along(extra: Any, folder: Path) -> Any:
    """JSON values with paths below *folder* relative to it: a checkout may move, plan and files."""
    if isinstance(extra, Mapping):
        return {key: moved_along(value, folder) for key, value in extra.items()}
    if isinstance(extra, str) and os.path.isabs(extra):
        path = Path(os.path.normpath(extra))
        return str(path.relative_to(folder)) if path.is_relative_to(folder) else extra
    return extra


def _side(location: Location) -> dict[str, Any]:
    return {
        "store": location.store,
        "options": {key: location.options[key] for key in _DECIDING if key in location.options},
    }
