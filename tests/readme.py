"""The parts of the README that are made: `python -m tests.readme` writes them anew."""

from __future__ import annotations

from pathlib import Path

from runner.plan import reference
from runner.report import fidelity

README = Path(__file__).parents[1] / "README.md"
PARTS = {"reference": reference.markdown, "fidelity": fidelity.markdown}


def parted(text: str, name: str) -> tuple[str, str, str]:
    """*text* before, between and after the markers of the part *name*."""
    before, begin, rest = text.partition(f"<!-- {name}:begin -->\n")
    found, end, after = rest.partition(f"<!-- {name}:end -->")
    assert begin, f"README.md has no part {name!r}"
    assert end, f"the part {name!r} of README.md does not end"
    return before + begin, found, end + after


if __name__ == "__main__":
    text = README.read_text("utf-8")
    for name, made in PARTS.items():
        before, _, after = parted(text, name)
        text = before + made() + after
    README.write_text(text, "utf-8")
