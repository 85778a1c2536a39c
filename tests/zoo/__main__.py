"""Run all rows and write `results/adapters.json` and `.md`: `python -m tests.zoo`.

Rows of other releases of transformers that stand in the file stay.
"""

import json
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import transformers

from tests import zoo

RESULTS = Path(__file__).parents[2] / "results" / "adapters.json"


def outcome(row: zoo.Row, root: Path) -> dict[str, Any]:
    """What became of a row, as it stands in the file."""
    found = {
        "adapter": row.adapter,
        "kind": row.kind,
        "checkpoint": row.make.__name__,
        "model_class": row.model_class,
    }
    if not hasattr(transformers, row.model_class):
        return {**found, "status": "absent", "detail": "this release has no such class"}
    monkeypatch = pytest.MonkeyPatch()
    output = root / "results" / row.name
    try:
        measured = zoo.measure(row, zoo.make(row, root), output, monkeypatch)
    except Exception as error:  # noqa: BLE001 - its message is the outcome
        status = "refused" if row.refused else "broken in the harness" if row.broken else "failed"
        message = " ".join(f"{type(error).__name__}: {error}".split()).replace(str(root), "")
        return {**found, "status": status, "detail": row.reason, "error": message[:300]}
    finally:
        monkeypatch.undo()
    documents = measured.report["documents"]
    counts = sorted({document["vision_tokens"] for document in documents})
    difference = abs(measured.report["mir"] - measured.wanted)
    right = [d["vision_tokens"] for d in documents] == measured.counts == measured.expected
    return {
        **found,
        "status": "measured" if right and difference < 1e-4 else "failed",
        "detail": row.reason,
        "placement": measured.report["placement"],
        "vision_rule": ", ".join(sorted({document["vision_rule"] for document in documents})),
        "vision_tokens": counts,
        "mir_difference": float(f"{difference:.1g}"),
    }


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """The file as a page."""
    lines = [
        "# Adapters of lmms-eval",
        "",
        "Written by `python -m tests.zoo`: every adapter with a native transformers model that a small",
        "random checkpoint can be made for, run through the harness. Measured: MIR within 1e-4 of an",
        "independent computation on the inputs that the model received, and as many vision tokens in",
        "each document as the processor counts.",
    ]
    for version, rows in sorted(results.items(), reverse=True):
        counts = Counter(row["status"] for row in rows)
        summary = ", ".join(f"{number} {status}" for status, number in counts.most_common())
        lines += [
            "",
            f"## transformers {version}: {summary}",
            "",
            "| adapter | kind | architecture | status | placement | vision tokens | found by | remark |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            counted = row.get("vision_tokens", [])
            span = f"{counted[0]} to {counted[-1]}" if len(counted) > 1 else "".join(map(str, counted))
            remark = "; ".join(part for part in (row["detail"], row.get("error", "")) if part)
            cells = [
                row["adapter"],
                row["kind"],
                row["model_class"].removesuffix("ForConditionalGeneration"),
                row["status"],
                row.get("placement", ""),
                span,
                row.get("vision_rule", ""),
                remark.replace("|", "\\|"),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the rows and write both files."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        results[transformers.__version__] = [outcome(row, Path(folder)) for row in zoo.rows()]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(table(results))


if __name__ == "__main__":
    main()
