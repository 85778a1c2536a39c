"""What the harness's evaluation does with MIR tasks among others, where their class cannot say it.

MIR is measured before all benchmarks, so that one which crashes takes no MIR with it, and benchmarks
keep their order among themselves, their limits and their figures.
"""

import functools
from collections.abc import Callable
from typing import Any

from lmms_eval import evaluator
from lmms_eval.api.group import ConfigurableGroup
from lmms_eval.api.metrics import aggregate_subtask_metrics
from loguru import logger

from mir_task.harness.task import MIRTask
from mir_task.plugin import name_apart, tasks_within

_MISSING = "N/A"


def install() -> None:
    """Have the evaluator of this process do so; once."""
    if isinstance(evaluator.get_task_list, functools.partial):
        return
    replacements: dict[str, Callable[..., Any]] = {
        "get_task_list": _tasks_in_order,
        "get_sample_size": _sample_size,
        "build_efficiency_summary": _efficiency_summary,
    }
    for name, with_mir in replacements.items():
        setattr(evaluator, name, functools.partial(with_mir, getattr(evaluator, name)))


def _tasks_in_order(of_the_harness: Callable[..., list[Any]], task_dict: dict[Any, Any]) -> list[Any]:
    """The tasks to evaluate: those of MIR first, each once and under a name of its own."""
    outputs = of_the_harness(task_dict)
    own = [output for output in outputs if isinstance(output.task, MIRTask)]
    others = [output for output in outputs if not isinstance(output.task, MIRTask)]
    taken: dict[str, Any] = {output.task_name: None for output in others}
    measured = [output for output in own if name_apart(output.task, taken)]
    for output in measured:
        output.task_name = output.task.name
        output.task_config = dict(output.task.dump_config())
        output.task.alone = not others
    _guard_aggregates(task_dict)
    return measured + others


class _Rounded(int):
    """A number of documents that comes of a fraction."""

    fraction: float


def _sample_size(of_the_harness: Callable[..., Any], task: Any, limit: Any) -> Any:
    """Documents of a task.

    The harness puts the number of one task in place of the limit of the next, so a fraction that was
    worked out for a MIR task is handed on as the fraction.
    """
    limit = getattr(limit, "fraction", limit)
    size = of_the_harness(task, limit)
    if isinstance(task, MIRTask) and limit is not None and 0 < limit < 1:
        size = _Rounded(size)
        size.fraction = limit
    return size


def _efficiency_summary(of_the_harness: Callable[..., Any], results: dict[str, Any]) -> Any:
    """The harness's sum of tokens, of benchmarks alone: MIR's requests generate nothing."""
    samples, configs = results.get("samples"), results.get("configs", {})
    if isinstance(samples, dict):
        own = {name for name, of in configs.items() if of.get("output_type") == MIRTask.OUTPUT_TYPE}
        others = {name: rows for name, rows in samples.items() if name not in own}
        results = {**results, "samples": others}
    return of_the_harness(results)


def _guard_aggregates(task_dict: dict[Any, Any]) -> None:
    """Have groups with MIR tasks aggregate all of their tasks or none."""
    for group, members in task_dict.items():
        if not isinstance(members, dict):
            continue
        _guard_aggregates(members)
        if isinstance(group, ConfigurableGroup) and any(
            isinstance(task, MIRTask) for task in tasks_within(members)
        ):
            for metric in group._config.aggregate_metric_list or []:
                if not hasattr(metric.aggregation, "of_all"):
                    metric.aggregation = _of_all(group.group_name, metric.aggregation)


def _of_all(group: str, aggregation: Any) -> Callable[..., Any]:
    aggregate = aggregate_subtask_metrics if aggregation == "mean" else aggregation

    def of_all(metrics: list[Any], *args: Any) -> Any:
        if missing := metrics.count(_MISSING):
            logger.warning(
                f"group {group} has no aggregate: {missing} of its {len(metrics)} tasks have no value"
            )
            return _MISSING
        return aggregate(metrics, *args)

    of_all.of_all = True  # type: ignore[attr-defined]
    return of_all
