"""Registration with lmms-eval.

The harness has an entry-point group for models only. It is read whenever the evaluator is imported,
before any `TaskManager` exists, and its payload may be a callable that names no models. It is read
while the harness's own modules are still being imported, so this module imports none of them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loguru import logger

from mir_task.errors import MIRError
from mir_task.tasks import TASK_CONFIGS, registered


def register() -> list[Any]:
    """Make the harness know the packaged tasks; payload of the entry point.

    Returns:
        No models.
    """
    from lmms_eval.tasks import TaskManager

    if hasattr(TaskManager, "knows_mir"):
        return []

    initialize_tasks = TaskManager.initialize_tasks

    def with_mir_tasks(
        self: TaskManager, include_path: Any = None, include_defaults: bool = True
    ) -> dict[str, Any]:
        index = dict(initialize_tasks(self, include_path, include_defaults))
        if include_defaults:
            index = {**self._get_task_and_group(str(TASK_CONFIGS)), **index}
        registered.update(
            (name, Path(entry["yaml_path"]))
            for name, entry in index.items()
            if entry["type"] == "python_task"
        )
        return index

    load_all = TaskManager.load_task_or_group
    load_one = TaskManager._load_individual_task_or_group
    failures: list[MIRError] = []

    def or_nothing(self: TaskManager, name_or_config: Any, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        # A MIR task that cannot be loaded takes no other task with it, whatever it raises: StopIteration
        # would even end the harness's list of tasks without a word.
        try:
            loaded = dict(load_one(self, name_or_config, *args, **kwargs))
            return {name: task for name, task in loaded.items() if task != {}}
        except Exception as error:
            config = name_or_config if isinstance(name_or_config, dict) else {"task": name_or_config}
            name = str(config.get("task"))
            if not isinstance(error, MIRError) and name not in registered:
                raise
            failure = error if isinstance(error, MIRError) else _failure(name, error)
            logger.error(f"a MIR task is left out: {failure}")
            failures.append(failure)
            return {}

    def with_mir_first(self: TaskManager, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        # A benchmark that crashes later then takes no MIR with it.
        failures.clear()
        tasks = load_all(self, *args, **kwargs)
        if failures and not any(tasks_within(tasks)):
            raise failures[0]
        return dict(sorted(tasks.items(), key=lambda item: not _mir_first(item[1])))

    TaskManager._load_individual_task_or_group = or_nothing
    TaskManager.load_task_or_group = with_mir_first
    TaskManager.initialize_tasks = with_mir_tasks
    TaskManager.knows_mir = True
    return []


def _failure(name: str, error: Exception) -> MIRError:
    return MIRError(
        f"task {name} of {registered[name]} cannot be loaded: {type(error).__name__}: {error}"
    )


def _mir_first(loaded: Any) -> bool:
    """Of a task, or of the tasks of a group."""
    tasks = tasks_within(loaded) if isinstance(loaded, dict) else [loaded]
    return all(hasattr(task, "mir_first") for task in tasks)


def tasks_within(loaded: dict[Any, Any]) -> Iterator[Any]:
    """The tasks of groups in groups."""
    for value in loaded.values():
        if isinstance(value, dict):
            yield from tasks_within(value)
        else:
            yield value
