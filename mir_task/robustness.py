"""How far MIR moves with its input (the paper's section 2.2 and Figure 3): `mir-task robustness`."""

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mir_task.settings import groups_in

Report = Mapping[str, Any]
"""A side file."""


def tables(reports: Iterable[Report], task_configs: Path) -> str:
    """MIR on each set of inputs and how far it spreads, a section a model, in Markdown.

    Args:
        reports: side files in the order of their dates; the newest of a model and task counts.
        task_configs: folder of the YAML files, whose groups are the sets.
    """
    sets = groups_in(task_configs)
    models: dict[tuple[str, str], dict[str, Report]] = {}
    for report in reports:
        if any(report["task"] in tasks for tasks in sets.values()):
            model = report["model"], str(report["model_args"])
            models.setdefault(model, {})[report["task"]] = report
    return "\n\n".join(_section(model, measured, sets) for model, measured in models.items())


def _section(
    model: tuple[str, str], measured: Mapping[str, Report], sets: Mapping[str, tuple[str, ...]]
) -> str:
    tasks = [
        "| set | task | documents | text | vision tokens | text tokens | MIR | ± | published fast |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    spread = [
        "| set | tasks | lowest | highest | range | standard deviation |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, members in sets.items():
        found = [measured[task] for task in members if task in measured]
        tasks += [_row(name, report) for report in found]
        values = [report["mir"] for report in found]
        if len(values) > 1:
            low, high = min(values), max(values)
            spread.append(
                f"| {name} | {len(values)} of {len(members)} | {low:.4f} | {high:.4f} | "
                f"{high - low:.4f} | {statistics.stdev(values):.4f} |"
            )
    return "\n".join([f"## {model[0]} {model[1]}", "", *tasks, "", *spread])


def _row(name: str, report: Report) -> str:
    layer, error, fast = report["layers"][0], report["mir_stderr"], report["mir_published_fast"]
    cells = [
        name,
        report["task"],
        str(len(report["documents"])),
        report["placement"],
        str(layer["vision_tokens"]),
        str(layer["text_tokens"]),
        f"{report['mir']:.4f}",
        "N/A" if error is None else f"{error:.4f}",
        "N/A" if fast is None else f"{fast:.4f}",
    ]
    return f"| {' | '.join(cells)} |"
