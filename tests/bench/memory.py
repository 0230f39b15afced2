"""Whether memory stays the same however many records are copied."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from runner.stores.base import Location

# The peak of this very process: getrusage would also count what its parent had at the fork.
_CHILD = """
import sys
from pathlib import Path
from runner import load_plan

result = load_plan(sys.argv[1]).run()
assert result.verdict == "passed", result.checks
for line in Path("/proc/self/status").read_text().splitlines():
    if line.startswith("VmHWM:"):
        print(int(line.split()[1]) * 1024)
"""


def peak_bytes(source: Location, folder: Path, records: int) -> int:
    """The peak of a process that copies a pgvector table to Parquet, with every check.

    Args:
        source: The table; its connection string is in ``$BENCH_DSN``.
        folder: Where the plan and the file go.
        records: How many the table holds.
    """
    plan = folder / f"memory_{records}.yaml"
    table = source.options["table"]
    plan.write_text(
        json.dumps(
            {
                "source": {"store": "pgvector", "dsn": "${BENCH_DSN}", "table": table},
                "target": {"store": "files", "path": f"memory_{records}.parquet"},
            }
        )
    )
    found = subprocess.run(
        [sys.executable, "-c", _CHILD, str(plan)],
        cwd=Path(__file__).parents[2],
        env=os.environ,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(found.stdout)
