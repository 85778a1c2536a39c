"""Run all rows and write `results/adapters.json` and `.md`: `python -m tests.zoo`.

What stands in the file of other releases of transformers stays: run it once in each environment.
"""

import json
import os
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import transformers
from packaging.version import Version

from tests import zoo
from tests.zoo import starts

RESULTS = Path(__file__).parents[2] / "results" / "adapters.json"

Outcome = dict[str, Any]
Results = dict[str, dict[str, Any]]
"""By version of transformers, then by what was tried: `adapters` or `starts`."""


def outcome(row: zoo.Row, root: Path) -> Outcome:
    """What became of a row, as it stands in the file."""
    found = {
        "adapter": row.adapter,
        "kind": row.kind,
        "checkpoint": row.make.__name__,
        "model_class": row.model_class,
    }
    if row.found_class is None:
        return {**found, "status": "absent"}
    monkeypatch = pytest.MonkeyPatch()
    without: dict[str, str] = {}
    try:
        checkpoint = zoo.make(row, root)
        without |= {name: error_without(row, checkpoint, name, root) for name in row.needs}
        measured = zoo.measure(row, checkpoint, root / "results" / row.name, monkeypatch)
    except pytest.skip.Exception as skip:
        return {**found, "status": "not tried", "remark": str(skip)}
    except Exception as error:  # noqa: BLE001 - its message is the outcome
        expected = re.search(row.refused or row.broken or "$^", str(error))
        status = row.status if expected else "failed"
        return {
            **found,
            "status": status,
            "reason": row.reason,
            "instead": row.instead,
            "error": one_line(error, root),
            "without": without,
        }
    finally:
        monkeypatch.undo()
    documents = measured.report["documents"]
    difference = abs(measured.report["mir"] - measured.wanted)
    right = [d["vision_tokens"] for d in documents] == measured.counts == measured.expected
    return {
        **found,
        "status": "measured" if right and difference < 1e-4 and all(without.values()) else "failed",
        "remark": row.reason,
        "placement": measured.report["placement"],
        "vision_rule": ", ".join(sorted({document["vision_rule"] for document in documents})),
        "vision_tokens": sorted({document["vision_tokens"] for document in documents}),
        "mir_difference": float(f"{difference:.1g}"),
        "without": without,
    }


def error_without(row: zoo.Row, checkpoint: Path, argument: str, root: Path) -> str:
    """The error of a row's adapter by its default of an argument; empty where it loads."""
    try:
        zoo.load_row(row, checkpoint, argument)
    except Exception as error:  # noqa: BLE001 - its message is the outcome
        return one_line(error, root)
    return ""


def one_line(error: Exception, root: Path) -> str:
    """An error as the harness gives it, without what this package puts around it."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).replace(str(root), "")
    text = re.sub(r"^MIRError: (document '[^']*': )?", "", text)
    text = text.partition(" (`mir_on_error")[0]
    if "no placement of the text works" in text:
        text = text.rpartition("user_generate: ")[2].removesuffix(")")
    return text.removesuffix(".")


def versions(results: Results) -> list[str]:
    """Of transformers, newest first."""
    return sorted(results, key=Version, reverse=True)


def joined(values: Iterable[str]) -> str:
    """Different values, each once."""
    return "; ".join(dict.fromkeys(value for value in values if value))


def page(results: Results) -> str:
    """The file as a page."""
    lines = [
        "# Adapters of lmms-eval",
        "",
        "Written by `python -m tests.zoo`: adapters of the harness on small random checkpoints of their",
        "architectures. Measured: MIR within 1e-4 of an independent computation on the inputs that the",
        "model received, and as many vision tokens in each document as the processor counts. Absent:",
        "no such model class beside that version.",
        "",
        *adapters({version: results[version]["adapters"] for version in versions(results)}),
        *cannot_start({version: results[version]["starts"] for version in versions(results)}),
    ]
    return "\n".join(lines) + "\n"


def adapters(found: dict[str, list[Outcome]]) -> list[str]:
    """The matrix of rows and versions, and below it what does not work."""
    lines = []
    rows: dict[tuple[str, ...], dict[str, Outcome]] = defaultdict(dict)
    for version, outcomes in found.items():
        counts = Counter(row["status"] for row in outcomes)
        parts = ", ".join(f"{number} {status}" for status, number in counts.most_common())
        lines.append(f"- transformers {version}: {parts}")
        for row in outcomes:
            rows[row["adapter"], row["model_class"], row["checkpoint"], row["kind"]][version] = row
    lines += [
        "",
        f"| adapter | kind | architecture | {' | '.join(found)} | vision tokens | found by | remark |",
        "|" + "---|" * (6 + len(found)),
    ]
    alike = Counter((adapter, model, kind) for adapter, model, _, kind in rows)
    entries: dict[str, list[str]] = {}
    for (adapter, model, checkpoint, kind), row in sorted(rows.items()):
        name = model.removesuffix("ForConditionalGeneration").removesuffix("ForCausalLM")
        if alike[adapter, model, kind] > 1:
            name += f" ({checkpoint})"
        outcomes = row.values()
        cells = [adapter, kind, name]
        for version in found:
            each = row.get(version, {"status": "not run"})
            placement = each.get("placement")
            cells.append(f"{each['status']} ({placement})" if placement else each["status"])
        cells += [
            joined(span(each.get("vision_tokens", [])) for each in outcomes),
            joined(each.get("vision_rule", "") for each in outcomes),
            joined(each.get("remark", "") for each in outcomes),
        ]
        lines.append(f"| {' | '.join(cells)} |")
        errors = {version: each["error"] for version, each in row.items() if "error" in each}
        if errors:
            entries[f"`{adapter}` ({kind}) on {name}"] = [
                told(errors, found),
                joined(each.get("reason", "") for each in outcomes),
                f"Instead: {joined(each.get('instead', '') for each in outcomes)}.",
            ]
    lines += ["", "### What does not work, and what does instead", ""]
    lines += [f"- **{title}**: {' '.join(parts)}" for title, parts in entries.items()]
    lacking: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for (adapter, *_), row in sorted(rows.items()):
        for argument in dict.fromkeys(name for each in row.values() for name in each.get("without", {})):
            errors = {
                version: each["without"][argument] for version, each in row.items() if "without" in each
            }
            lacking[argument, told(errors, found)][f"`{adapter}`"] = None
    for (argument, errors), names in lacking.items():
        title = f"**{', '.join(names)} without `{argument}`**"
        lines.append(f"- {title}: {errors} Instead: `{argument}=cpu`, as here, or another device.")
    return lines


def span(counted: list[int]) -> str:
    """A range of numbers."""
    return f"{counted[0]} to {counted[-1]}" if len(counted) > 1 else "".join(map(str, counted))


def told(errors: dict[str, str], found: Iterable[str]) -> str:
    """Errors by version, the version named where not all have the same."""
    if len(set(errors.values())) == 1 and len(errors) == len(list(found)):
        return f"`{next(iter(errors.values()))}`."
    return " ".join(f"`{error}` ({version})." for version, error in errors.items())


def cannot_start(found: dict[str, Outcome]) -> list[str]:
    """The table of adapters that do not get as far as their checkpoint, by cause."""
    lines = [
        "",
        "## Adapters that cannot start",
        "",
        "Every adapter, in each of its kinds, imported and built without a network up to where it asks",
        "for its checkpoint; installed are the packages of the extra `dev`, and llava-torch beside",
        "transformers 4. In parentheses what the adapter's file imports in vain, in brackets the version",
        "where not all fail.",
        "",
    ]
    groups: dict[str, dict[str, dict[str, Outcome]]] = {known.title: {} for known in starts.CAUSES}
    for version, outcomes in found.items():
        failed = outcomes["cannot start"]
        fine, served = (outcomes[name] for name in ("loads a checkpoint", "holds no model"))
        total = len(fine) + len(served) + len(failed)
        lines.append(
            f"- transformers {version}: {total} registered; {len(fine)} get to their checkpoint, "
            f"{len(served)} start and hold no model, {len(failed)} cannot start"
        )
        for failure in failed:
            groups[starts.cause(failure).title].setdefault(failure["adapter"], {})[version] = failure
    lines += ["", "| cause | adapters (packages) | way out |", "|---|---|---|"]
    for known in starts.CAUSES:
        members = groups[known.title]
        errors = [failure["error"] for each in members.values() for failure in each.values()]
        by_packages: dict[str, list[str]] = defaultdict(list)
        for name, failures in members.items():
            only = "" if len(failures) == len(found) else f" [{', '.join(failures)}]"
            missing = next(iter(failures.values()))["missing"]
            by_packages[", ".join(missing)].append(f"{name}{only}")
        cell = "; ".join(
            ", ".join(names) + (f" ({packages})" if packages else "")
            for packages, names in by_packages.items()
        )
        lines.append(f"| {known.title}, as in `{min(errors, key=len)}` | {cell} | {known.way} |")
    return [
        *lines,
        "",
        "Start, but hold no model in this process, so that MIR refuses them: "
        + ", ".join(dict.fromkeys(name for each in found.values() for name in each["holds no model"]))
        + ".",
        "",
        f"Start by a package that the harness does not bring ({', '.join(starts.EXTRAS)}; "
        "`pip install 'mir-task[qwen2-5-vl]'`, for LLaVA `'mir-task[llava-hf]'`): "
        + ", ".join(dict.fromkeys(name for each in found.values() for name in each["by an extra"]))
        + ".",
    ]


def main() -> None:
    """Run the rows, try the adapters, and write both files."""
    results: Results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        results[transformers.__version__] = {
            "adapters": [outcome(row, Path(folder)) for row in zoo.rows()],
            "starts": starts.summary(),
        }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(page(results))


if __name__ == "__main__":
    main()
