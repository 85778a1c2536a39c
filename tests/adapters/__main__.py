"""Run all rows and write `results/adapters.json` and `.md`: `python -m tests.adapters`.

What stands in the file of other releases of transformers stays: run it once in each environment.
"""

import inspect
import json
import os
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.append(str(Path(__file__).parents[1] / "standins" / "installed"))

import pytest
import transformers
from packaging.version import Version

from tests import adapters
from tests.adapters import starts
from tests.standins import families
from tests.standins import measure as standins

RESULTS = Path(__file__).parents[2] / "results" / "adapters.json"

NOTE = re.compile(r"does not do \S+ \((.*)\); the text is placed by")
"""The reason of a placement that does not work, in a warning of the side file."""

PLACEMENTS = ("user_generate", "assistant_chat", "assistant_loglikelihood")
"""From worst to best."""

Outcome = dict[str, Any]
Results = dict[str, dict[str, Any]]
"""By version of transformers, then by what was tried: `adapters` or `starts`."""


def outcome(row: adapters.Row, root: Path) -> Outcome:
    """What became of a row, as it stands in the file."""
    found = {
        "adapter": row.adapter,
        "kind": row.kind,
        "checkpoint": row.make.__name__,
        "model_class": row.model_class,
        "modality": row.modality,
    }
    if row.found_class is None:
        return {**found, "status": "absent"}
    monkeypatch = pytest.MonkeyPatch()
    without: dict[str, str] = {}
    try:
        checkpoint = adapters.make(row, root)
        without |= {name: error_without(row, checkpoint, name, root) for name in row.needs}
        measured = adapters.measure(row, checkpoint, root / "results" / row.name, monkeypatch)
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
        "note": joined(
            note.replace(str(root), "")
            for warning in measured.report["warnings"]
            for note in NOTE.findall(warning)
        ),
        "instead": row.instead,
    }


def error_without(row: adapters.Row, checkpoint: Path, argument: str, root: Path) -> str:
    """The error of a row's adapter by its default of an argument; empty where it loads."""
    try:
        adapters.load_row(row, checkpoint, argument)
    except Exception as error:  # noqa: BLE001 - its message is the outcome
        return one_line(error, root)
    return ""


def one_line(error: Exception, root: Path) -> str:
    """An error as the harness gives it, without what this package puts around it."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).replace(str(root), "")
    text = re.sub(r"^MIRError: (document '[^']*': )?", "", text)
    text = text.partition(" (`mir_on_error")[0].replace("`", "'")
    if "no placement of the text works" in text:
        text = text.rpartition("user_generate: ")[2].removesuffix(")")
    return text.rstrip(". ")


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
        "Written by `python -m tests.adapters`: adapters of the harness on small random checkpoints of",
        "their architectures. Measured: MIR within 1e-4 of an independent computation on the inputs",
        "that the model received, and as many vision tokens in each document as the processor counts.",
        "Absent:",
        "no such model class beside that version.",
        "",
        *adapters({version: results[version]["adapters"] for version in versions(results)}),
        *stand_ins({version: results[version]["standins"] for version in versions(results)}),
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
            keys = ("adapter", "model_class", "checkpoint", "kind", "modality")
            rows[tuple(row[key] for key in keys)][version] = row
    lines += [
        "",
        f"| adapter | kind | architecture | {' | '.join(found)} | vision tokens | found by | remark |",
        "|" + "---|" * (6 + len(found)),
    ]
    alike = Counter((adapter, model, kind, modality) for adapter, model, _, kind, modality in rows)
    entries: dict[str, list[str]] = {}
    worse: dict[tuple[str, str, str], dict[str, None]] = defaultdict(dict)
    for (adapter, model, checkpoint, kind, modality), row in sorted(rows.items()):
        name = model.removesuffix("ForConditionalGeneration").removesuffix("ForCausalLM")
        if alike[adapter, model, kind, modality] > 1:
            name += f" ({checkpoint})"
        if modality != "image":
            name += f", {modality}"
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
        placements = {version: each["placement"] for version, each in row.items() if "placement" in each}
        best = max(placements.values(), key=PLACEMENTS.index, default="")
        notes = {
            version: row[version]["note"]
            for version, placement in placements.items()
            if placement != best
        }
        if notes:
            title = f"`{adapter}` ({kind}) with `{best}`"
            instead = joined(each.get("instead", "") for each in outcomes)
            worse[title, told(notes, found), instead][name] = None
    lines += ["", "### What does not work, and what does instead", ""]
    lines += [f"- **{title}**: {' '.join(parts)}" for title, parts in entries.items()]
    lacking: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for (adapter, *_), row in sorted(rows.items()):
        for argument in dict.fromkeys(name for each in row.values() for name in each.get("without", {})):
            errors = {
                version: each["without"][argument] for version, each in row.items() if "without" in each
            }
            lacking[argument, told(errors, found)][f"`{adapter}`"] = None
    for (title, errors, instead), names in worse.items():
        lines.append(f"- **{title} on {', '.join(names)}**: {errors} Instead: {instead}.")
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


def stand_in(name: str, root: Path) -> Outcome:
    """What became of a stand-in, as it stands in the file."""
    family = families.FAMILIES[name]
    said = {"structure": inspect.cleandoc(family.__doc__).partition("\n")[0], "for": family.stands_for}
    try:
        measured = standins.measure(name, root / "results" / name)
    except Exception as error:  # noqa: BLE001 - its message is the outcome
        return {"name": name, **said, "status": "failed", "error": one_line(error, root)}
    documents = measured.report["documents"]
    tokens = sorted((d["vision_tokens"], d["text_tokens"]) for d in documents)
    difference = abs(measured.report["mir"] - measured.wanted)
    return {
        "name": name,
        **said,
        "status": "measured" if tokens == measured.tokens and difference < 1e-4 else "failed",
        "vision_tokens": sorted({vision for vision, _ in tokens}),
        "vision_rule": ", ".join(sorted({document["vision_rule"] for document in documents})),
        "mir_difference": float(f"{difference:.1g}"),
    }


def stand_ins(found: dict[str, list[Outcome]]) -> list[str]:
    """The table of structures whose adapters' own code cannot be had from a package index."""
    lines = [
        "",
        "## Adapters with code on the Hub or in packages of their own",
        "",
        "Their code cannot be had from a package index, so for each structure a small model stands in",
        "(`tests/standins/`), registered through the harness's own entry point. Measured: as many",
        "vision and text tokens in each document as the stand-in put into its sequence, and MIR within",
        "1e-4 of an independent computation on that sequence.",
        "",
    ]
    for version, outcomes in found.items():
        counts = Counter(family["status"] for family in outcomes)
        parts = ", ".join(f"{number} {status}" for status, number in counts.most_common())
        lines.append(f"- transformers {version}: {parts}")
    lines += [
        "",
        f"| structure | as in | {' | '.join(found)} | vision tokens | found by |",
        "|" + "---|" * (4 + len(found)),
    ]
    by_name: dict[str, list[Outcome]] = defaultdict(list)
    for outcomes in found.values():
        for family in outcomes:
            by_name[family["name"]].append(family)
    for each in by_name.values():
        cells = [each[0]["structure"], each[0]["for"], *(family["status"] for family in each)]
        cells.append(joined(span(family.get("vision_tokens", [])) for family in each))
        cells.append(joined(family.get("vision_rule", "") for family in each))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def cannot_start(found: dict[str, Outcome]) -> list[str]:
    """The table of adapters that do not get as far as their checkpoint, by cause."""
    lines = [
        "",
        "## Adapters that cannot start",
        "",
        "Every adapter, in each of its kinds, imported and built without a network up to where it asks",
        "for its checkpoint; installed are the packages of the extra `dev`, and llava-torch beside",
        "transformers 4. In brackets: the version on which one fails, where not all do.",
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
    lines += [
        "",
        "| cause, and what the adapter's file imports in vain | adapters | way out |",
        "|---|---|---|",
    ]
    for known in starts.CAUSES:
        if not (members := groups[known.title]):
            continue
        errors = [failure["error"] for each in members.values() for failure in each.values()]
        by_packages: dict[str, list[str]] = defaultdict(list)
        for name, failures in members.items():
            only = "" if len(failures) == len(found) else f" [{', '.join(failures)}]"
            missing = next(iter(failures.values()))["missing"]
            by_packages[", ".join(missing)].append(f"{name}{only}")
        without = both(by_packages.pop("", []))
        lines.append(f"| **{known.title}**: `{min(errors, key=len)}` | {without} | {known.way} |")
        lines += [f"| {packages} | {both(names)} | |" for packages, names in sorted(by_packages.items())]
    needed: dict[str, list[str]] = defaultdict(list)
    for each in found.values():
        for name, starting in each["only with"].items():
            needed[name] += starting
    return [
        *lines,
        "",
        "Start, but by their defaults hold no model in this process, so that MIR refuses them: "
        + both(name for each in found.values() for name in each["holds no model"])
        + ".",
        "",
        "Start only with a package that the harness does not bring (`mir-task[llava-hf]` brings decord,",
        "`mir-task[audio]` librosa):",
        "",
        *(f"- {name}: {both(adapters)}" for name, adapters in sorted(needed.items())),
    ]


def both(names: Iterable[str]) -> str:
    """Names of adapters, each once; without the kind where both are among them."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(names):
        adapter, _, kind = name.partition(" ")
        kinds[adapter].append(kind)
    return ", ".join(
        adapter if len(each) > 1 else f"{adapter} {each[0]}".rstrip() for adapter, each in kinds.items()
    )


def main() -> None:
    """Run the rows, try the adapters, and write both files."""
    results: Results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        results[transformers.__version__] = {
            "adapters": [outcome(row, Path(folder)) for row in adapters.rows()],
            "standins": [stand_in(name, Path(folder)) for name in families.FAMILIES],
            "starts": starts.summary(),
        }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(page(results))


if __name__ == "__main__":
    main()
