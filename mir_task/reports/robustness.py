"""How far MIR moves with its input (the paper's section 2.2 and Figure 3): `mir-task robustness`."""

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path

from mir_task.reports.records import Model, Record
from mir_task.tasks import groups_in


def tables(records: Iterable[Record], task_configs: Path) -> str:
    """MIR on each set of inputs and how far it spreads, a section a model, in Markdown.

    Args:
        records: of side files, oldest first; the newest of a model and task counts.
        task_configs: folder of the YAML files, whose groups are the sets.
    """
    sets = groups_in(task_configs)
    models: dict[Model, dict[str, Record]] = {}
    for record in records:
        if record.ground is not None and any(record.task in tasks for tasks in sets.values()):
            models.setdefault(record.model, {})[record.task] = record
    return "\n\n".join(_section(model, measured, sets) for model, measured in models.items())


def _section(model: Model, measured: Mapping[str, Record], sets: Mapping[str, tuple[str, ...]]) -> str:
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
        tasks += [_row(name, record) for record in found]
        values = [record.mir for record in found]
        if len(values) > 1:
            low, high = min(values), max(values)
            spread.append(
                f"| {name} | {len(values)} of {len(members)} | {low:.4f} | {high:.4f} | "
                f"{high - low:.4f} | {statistics.stdev(values):.4f} |"
            )
    return "\n".join([f"## {model.name} ({model.adapter})", "", *tasks, "", *spread])


def _row(name: str, record: Record) -> str:
    assert record.ground is not None
    assert record.result is not None
    layer, error, fast = record.result.layers[0], record.mir_stderr, record.mir_published_fast
    cells = [
        name,
        record.task,
        str(len(record.ground.documents)),
        record.ground.placement,
        str(layer.vision_tokens),
        str(layer.text_tokens),
        f"{record.mir:.4f}",
        "N/A" if error is None else f"{error:.4f}",
        "N/A" if fast is None else f"{fast:.4f}",
    ]
    return f"| {' | '.join(cells)} |"
