"""Build and measure all small models and write `results/architectures.json` and `.md`.

`python -m tests.architectures`: once in each environment; what stands in the file of other releases of
transformers stays.
"""

import json
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import transformers

from tests.architectures import Small, architectures, names
from tests.architectures.outcomes import Outcome, outcome
from tests.architectures.table import NOT_TRIED, page

RESULTS = Path(__file__).parents[2] / "results" / "architectures.json"


def tried(row: Small) -> Outcome:
    """The outcome of a row, or why there is none."""
    known = {"name": row.name, "modality": row.modality, "remark": row.remark}
    if row.hindrance:
        return {**known, "status": "not tried", "reason": row.hindrance}
    try:
        return outcome(row)
    except Exception as error:  # noqa: BLE001 - its message is the outcome
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return {**known, "status": "failed", "reason": reason}


def untried(name: str) -> Outcome:
    """Of a name without a row."""
    reason = NOT_TRIED.get(name)
    status = {"status": "not tried", "reason": reason} if reason else {"status": "new"}
    return {"name": name, "modality": "image", **status}


def main() -> None:
    """Run all rows, and write both files."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rows = [row for row in architectures() if row.model_class is not None]
    others = sorted(names().keys() - {row.name for row in rows})
    found = [tried(row) for row in rows] + [untried(name) for name in others]
    results[transformers.__version__] = found
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(page(results))


if __name__ == "__main__":
    main()
