"""Registration with lmms-eval.

The harness has an entry-point group for models only. It is read whenever the evaluator is imported,
before any `TaskManager` exists, and its payload may be a callable that names no models. It is read
while the harness's own modules are still being imported, so this module imports none of them.
"""

from pathlib import Path
from typing import Any

from mir_task.settings import TASK_CONFIGS

yaml_paths: dict[str, Path] = {}
"""Where the MIR tasks of the latest index stand, by name."""


def register() -> list[Any]:
    """Make the harness know the packaged tasks and the request type; payload of the entry point.

    Returns:
        No models.
    """
    from lmms_eval.api.model import lmms
    from lmms_eval.tasks import TaskManager

    if hasattr(lmms, "mir_prefill"):
        return []

    def mir_prefill(lm: lmms, requests: list[Any]) -> list[Any]:
        from mir_task.harness import mir_prefill

        return list(mir_prefill(lm, requests))

    initialize_tasks = TaskManager.initialize_tasks

    def with_mir_tasks(
        self: TaskManager, include_path: Any = None, include_defaults: bool = True
    ) -> dict[str, Any]:
        index = dict(initialize_tasks(self, include_path, include_defaults))
        if include_defaults:
            index = {**self._get_task_and_group(str(TASK_CONFIGS)), **index}
        yaml_paths.update(
            (name, Path(entry["yaml_path"]))
            for name, entry in index.items()
            if entry["type"] == "python_task"
        )
        return index

    load = TaskManager.load_task_or_group

    def with_mir_first(self: TaskManager, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        # A benchmark that crashes later then takes no MIR with it.
        tasks = load(self, *args, **kwargs)
        return dict(sorted(tasks.items(), key=lambda item: not hasattr(item[1], "mir_first")))

    TaskManager.load_task_or_group = with_mir_first
    lmms.mir_prefill = mir_prefill
    TaskManager.initialize_tasks = with_mir_tasks
    return []
