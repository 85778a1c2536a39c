"""`results/architectures.md` from the outcomes of each release of transformers."""

from collections import Counter, defaultdict
from typing import Any

from packaging.version import Version

NOT_TRIED = {"pixtral": "the name of a vision tower, whose models are LLaVA's"}
"""From names of architectures to what stands in the way of a small model."""

Results = dict[str, list[dict[str, Any]]]
"""Outcomes by version of transformers."""

INTRODUCTION = """# Architectures of transformers

Written by `python -m tests.architectures`: small random models of every name in transformers' mappings
of image-text and multimodal models, built from the default configurations and given their inputs
directly, without a processor. Measured: MIR of `mir_task.measure` within 1e-6 of an independent
computation, in float32 and in bfloat16 (the larger difference is given), and MoCa changes nothing at
first, has an effect after, and leaves nothing when it is removed. Refused: `mir_task.measure` ends with
the message, which the tests look for. Absent: no such model in that release.
"""


def page(results: Results) -> str:
    """The page."""
    versions = sorted(results, key=Version, reverse=True)
    by_row: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for version in versions:
        for found in results[version]:
            by_row[found["name"], found["modality"], found.get("remark", "")][version] = found
    lines = [INTRODUCTION]
    for version in versions:
        counts = Counter(found["status"] for found in results[version])
        parts = ", ".join(f"{number} {status}" for status, number in counts.most_common())
        lines.append(f"- transformers {version}: {parts}")
    lines += [
        "",
        f"| architecture | {' | '.join(versions)} | tokens | found | remark |",
        "|" + "---|" * (4 + len(versions)),
    ]
    refusals: dict[str, list[str]] = defaultdict(list)
    for (name, modality, remark), found in sorted(by_row.items()):
        first = next(iter(found.values()))
        cells = [name if modality == "image" else f"{name}, {modality}"]
        cells += [_status(found.get(version)) for version in versions]
        cells.append(" to ".join(str(n) for n in _ends(first.get("vision_tokens", []))))
        cells += [first.get("found_by", "").partition(":")[0], remark]
        lines.append(f"| {' | '.join(cells)} |")
        if first["status"] == "refused":
            reason = first["reason"].replace(first["model_class"], "the model")
            refusals[reason].append(name)
    lines += ["", "## Refused, with the message", ""]
    lines += [f"- {', '.join(dict.fromkeys(names))}: `{reason}`" for reason, names in refusals.items()]
    return "\n".join(lines) + "\n"


def _status(found: dict[str, Any] | None) -> str:
    if found is None:
        return "absent"
    if found["status"] == "measured":
        return f"measured ({max(found['differences'].values()):.0e})"
    if found["status"] == "not tried":
        return f"not tried: {found['reason']}"
    return str(found["status"])


def _ends(numbers: list[int]) -> list[int]:
    return sorted({min(numbers), max(numbers)}) if numbers else []
