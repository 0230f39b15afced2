"""What import_jsonl.yaml needs and no other plan does: a function beside the plan."""

from __future__ import annotations

from dataclasses import replace

from runner.transform import Record


def without_signature(record: Record) -> Record | None:
    """Cut a mail's signature off the text; a ticket without any text is set aside."""
    text = (record.document or "").partition("\n-- \n")[0].strip()
    return replace(record, document=text) if text else None
