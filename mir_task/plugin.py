"""Registration with lmms-eval: its tasks are found, and none that fails to load takes another along.

The harness has an entry-point group for models only, which is read when its models are imported. Some
of its commands never do that, and a foreign plugin that raises ends the reading, so `mir_task.startup`
registers too, as soon as the harness's tasks are imported. This module is imported while the harness's
own are still being imported, so it imports none of them.
"""

import contextlib
import functools
import itertools
import os
import re
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

from loguru import logger

from mir_task.errors import MIRError
from mir_task.tasks import TASK_CONFIGS, is_mir_file, known_bases, mir_keys

failed_task: list[Callable[[str, Exception], Any]] = []
"""Makes the task that stands in for one which cannot be loaded; `mir_task.harness` puts it here."""


class _Loading(NamedTuple):
    """MIR tasks that are loaded together."""

    tasks: dict[str, Any]
    """By name."""
    failures: dict[str, MIRError]
    """Of tasks that could not be loaded, by name; told together at the end."""


_reading = threading.RLock()
"""The harness reads YAML in two ways, and a thread that reads in one changes that of all."""
_loading: ContextVar[_Loading | None] = ContextVar("loading", default=None)


@contextlib.contextmanager
def _together() -> Iterator[_Loading]:
    """What this thread is loading, which begins here or further out."""
    loading = _loading.get() or _Loading({}, {})
    token = _loading.set(loading)
    try:
        yield loading
    finally:
        _loading.reset(token)
        if _loading.get() is None and loading.failures:
            logger.error(_told_together(loading.failures))


def register() -> list[Any]:
    """Make the harness know the packaged tasks; payload of the entry point.

    Returns:
        No models.
    """
    from lmms_eval import tasks
    from lmms_eval.tasks import TaskManager

    if hasattr(TaskManager, "mir_paths"):
        return []
    initialize_tasks = TaskManager.initialize_tasks
    load_list = TaskManager.load_task_or_group
    load_one = TaskManager._load_individual_task_or_group
    get_config = TaskManager._get_config
    get_task_dict = tasks.get_task_dict
    all_subtasks = TaskManager.all_subtasks

    def with_mir_tasks(
        self: TaskManager, include_path: Any = None, include_defaults: bool = True
    ) -> dict[str, Any]:
        with _reading:
            index = dict(initialize_tasks(self, include_path, include_defaults))
            if include_defaults:
                index = {**self._get_task_and_group(str(TASK_CONFIGS)), **index}
        return index

    def one_at_a_time(self: TaskManager, name: str) -> dict[str, Any]:
        with _reading:
            return dict(get_config(self, name))

    def or_failed(self: TaskManager, name_or_config: Any, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        # Whatever a MIR task raises: StopIteration would end the harness's list of tasks without a word.
        config = name_or_config if isinstance(name_or_config, dict) else {"task": name_or_config}
        name = config.get("task")
        if not isinstance(name, str) or not (name in self.mir_paths or _is_mir(config)):
            return _without_empty(load_one(self, name_or_config, *args, **kwargs))
        with _together() as loading:
            try:
                with known_bases(self.mir_paths):
                    if name not in self._task_index and "class" in config:
                        # The harness forgets the name of a task that is not in its index.
                        changes = kwargs.get("update_config") or {}
                        loaded = {name: config["class"](config={**config, **changes})}
                    else:
                        given = dict(config) if isinstance(name_or_config, dict) else name
                        # Its numbers of tasks of one name repeat themselves.
                        loaded = load_one(self, given, *args, **{**kwargs, "parent_name": None})
            except Exception as error:  # noqa: BLE001 - told, and the scores are N/A
                loaded = _failed(name, self.mir_paths.get(name), error, loading)
            return _named(_without_empty(loaded), loading.tasks)

    def or_message(self: TaskManager, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        with _together() as loading:
            loaded = load_list(self, *args, **kwargs)
            # Where other processes wait, the run goes on to the point where all learn of it.
            waited_for = int(os.environ.get("WORLD_SIZE", "1")) > 1
            nothing_else = all(getattr(task, "failure", None) for task in tasks_within(loaded))
            if loading.failures and nothing_else and not waited_for:
                first, *others = loading.failures.values()
                message = _told_together(loading.failures)
                loading.failures.clear()  # told by what is raised
                raise MIRError(message) if others else first
        return dict(loaded)

    def with_own_names(
        task_name_list: Any, task_manager: Any = None, *args: Any, **kwargs: Any
    ) -> dict[Any, Any]:
        if isinstance(task_name_list, list):
            index = getattr(task_manager, "task_index", {})
            made_up = [each for each in task_name_list if _is_mir(each) and each["task"] not in index]
            configs = {each["task"]: dict(each) for each in made_up}
            with known_bases(configs), _together() as loading:
                named = _with_own_names(task_name_list, loading.tasks)
                return dict(get_task_dict(named, task_manager, *args, **kwargs))
        return dict(get_task_dict(task_name_list, task_manager, *args, **kwargs))

    TaskManager.mir_paths = functools.cached_property(_mir_paths)
    TaskManager.mir_paths.__set_name__(TaskManager, "mir_paths")
    TaskManager.initialize_tasks = with_mir_tasks
    TaskManager._get_config = one_at_a_time
    TaskManager._load_individual_task_or_group = or_failed
    TaskManager.load_task_or_group = or_message
    TaskManager.all_subtasks = property(
        # The harness lists no tasks that have a class of their own.
        lambda self: sorted({*all_subtasks.fget(self), *self.mir_paths})
    )
    tasks.get_task_dict = with_own_names
    return []


def _named(loaded: dict[Any, Any], taken: dict[str, Any]) -> dict[Any, Any]:
    """MIR tasks under names of their own; those that measure the same are one."""
    named = {}
    for name, task in loaded.items():
        if hasattr(task, "mir_first"):
            name_apart(task, taken)
            named[task.task_name] = taken[task.task_name]
        else:
            named[name] = task
    return named


def _without_empty(loaded: Any) -> dict[Any, Any]:
    """What was loaded, but groups of which nothing could be: the harness has no figure for them."""
    return {name: task for name, task in loaded.items() if task != {}}


def _mir_paths(manager: Any) -> dict[str, Path]:
    """YAML file of each MIR task in an index of the harness, which may be older than registration."""
    entries = manager.task_index.items()
    own = {name: Path(entry["yaml_path"]) for name, entry in entries if entry["type"] == "python_task"}
    return {name: path for name, path in own.items() if is_mir_file(path)}


def _is_mir(config: Any) -> bool:
    """Whether a configuration is of one MIR task, by its class or its keys."""
    if not isinstance(config, dict) or not isinstance(config.get("task"), str):
        return False
    return bool(mir_keys(config) or hasattr(config.get("class"), "mir_first"))


def _failed(name: str, path: Path | None, error: Exception, loading: _Loading) -> dict[str, Any]:
    """The task that stands in for one that could not be loaded; none where nothing of MIR can be."""
    message = str(error) if isinstance(error, MIRError) else f"{type(error).__name__}: {error}"
    if not message.startswith(f"task {name}"):
        message = f"task {name} cannot be loaded: {message}"
    if path is not None:
        message = message.replace(f"task {name}", f"task {name} of {path}", 1)
    failure = MIRError(message)
    failure.__cause__ = error
    loading.failures[name] = failure
    return {name: failed_task[0](name, failure)} if failed_task else {}


def _told_together(failures: dict[str, MIRError]) -> str:
    """Why tasks cannot be measured: once what several have in common, with the names of those.

    Messages of one place in the code share their advice, so of the second and later only the beginning
    is told.
    """
    places: dict[Any, dict[str, list[str]]] = {}
    for name, failure in failures.items():
        innermost = (failure.__cause__ or failure).__traceback__
        while innermost is not None and innermost.tb_next is not None:
            innermost = innermost.tb_next
        place = innermost and (innermost.tb_frame.f_code.co_filename, innermost.tb_lineno)
        reason = re.sub(rf"\b{re.escape(name)}\b", "TASK", str(failure.__cause__ or failure))
        places.setdefault(place, {}).setdefault(reason, []).append(name)
    lines = []
    for reasons in places.values():
        first, *same = next(iter(reasons.values()))
        lines.append(str(failures[first]) + (f"\nLikewise {', '.join(same)}" if same else ""))
        for reason, names in list(reasons.items())[1:]:
            start = textwrap.shorten(reason.removeprefix("task TASK: "), 150, placeholder=" …")
            lines.append(f"Likewise {', '.join(names)}: {start}")
    count = len(failures)
    return (
        (f"{count} MIR tasks cannot" if count > 1 else "a MIR task cannot")
        + " be measured: "
        + ("\n".join(lines))
    )


def _with_own_names(elements: list[Any], taken: dict[str, Any]) -> list[Any]:
    """What was asked for, with MIR's task objects each once and under a name of its own."""
    objects = [each for each in elements if hasattr(each, "mir_first")]
    others = (each.get("task") if isinstance(each, dict) else each for each in elements)
    names: dict[str, Any] = {name: None for name in others if isinstance(name, str)}
    left_out = [each for each in objects if not name_apart(each, names)]
    taken |= {name: task for name, task in names.items() if task is not None}
    return [each for each in elements if not any(each is other for other in left_out)]


def name_apart(task: Any, taken: dict[str, Any]) -> bool:
    """Give a MIR task a name under which no other one stands, as NAME-1; the harness numbers alike.

    Args:
        task: to name.
        taken: MIR tasks by name, None for whatever else has that name; the task is added.

    Returns:
        Whether it is to be measured: one of the same name and settings may be there already.
    """
    name = task.task_name
    for free in itertools.chain([name], (f"{name}-{n}" for n in itertools.count(1))):
        other = taken.get(free)
        new = free not in taken
        if new or (other is not None and other.measures_as(task)):
            if free != name:
                keys = getattr(taken[name], "keys", {})
                own = {key: value for key, value in task.keys.items() if keys.get(key) != value}
                logger.warning(f"two tasks are named {name}; the one with {own} is {free} in this run")
                task.rename(free)
            taken.setdefault(free, task)
            return new
    raise AssertionError("names do not run out")


def tasks_within(loaded: dict[Any, Any]) -> Iterator[Any]:
    """The tasks of groups in groups."""
    for value in loaded.values():
        if isinstance(value, dict):
            yield from tasks_within(value)
        else:
            yield value
