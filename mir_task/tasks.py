"""The YAML files of MIR tasks: where they stand, what they build on, and their keys."""

import contextlib
import itertools
from collections.abc import Collection, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import yaml

from mir_task.errors import MIRError, did_you_mean
from mir_task.settings import BASE, PREFIX, Settings

_INSTALLED = Path(__file__).parent / "task_configs"
TASK_CONFIGS = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1] / "task_configs"
"""Folder of the packaged tasks' YAML files: in the wheel, or beside the package in a checkout."""
LM_EVAL_TASKS = Path(__file__).parent / "harness" / "lm_eval" / "tasks"
"""Folder of the same for lm-evaluation-harness, for its `--include_path`."""

Bases = Mapping[str, Path | Mapping[str, Any]]
"""YAML file, or configuration, of each task that `mir_base` may name, by the task's name."""
_bases: ContextVar[Bases | None] = ContextVar("bases", default=None)


class _Loader(yaml.SafeLoader):
    """YAML whose `!function` tags of the harness are left as their text."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def packaged_tasks() -> dict[str, Path]:
    """YAML file of each MIR task of this package, by the task's name."""
    return tasks_in(TASK_CONFIGS)


def tasks_in(folder: Path) -> dict[str, Path]:
    """YAML file of each MIR task in a folder and below, by the task's name.

    Raises:
        MIRError: a file that cannot be read, or one of a task without a name.
    """
    configs = {path: _read(path) for path in sorted(folder.rglob("*.yaml"))}
    tasks: dict[str, Path] = {}
    for path, config in configs.items():
        if mir_keys(config):
            name = config.get("task")
            if not isinstance(name, str):
                raise MIRError(
                    f"{path.absolute()} has keys of a MIR task and no name of one: give it `task: NAME`"
                )
            tasks[name] = path
    return tasks


def groups_in(folder: Path) -> dict[str, tuple[str, ...]]:
    """Names of the tasks, or of groups, in each group of a folder's YAML files."""
    configs = [_read(path) for path in sorted(folder.rglob("*.yaml"))]
    groups = {}
    for config in configs:
        if isinstance(config.get("group"), str):
            members = config.get("task") or []
            members = [members] if isinstance(members, str) else members
            names = (each.get("task") if isinstance(each, dict) else each for each in members)
            groups[config["group"]] = tuple(name for name in names if isinstance(name, str))
    return groups


def benchmarks_in(folder: Path) -> list[str]:
    """Names of the tasks in a folder's YAML files that are not of MIR."""
    configs = [_read(path) for path in sorted(folder.rglob("*.yaml"))]
    return [c["task"] for c in configs if isinstance(c.get("task"), str) and not mir_keys(c)]


def description(path: Path) -> str:
    """What a YAML file says of its task: the comment that it begins with; empty where there is none."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text("utf-8").splitlines())
    return " ".join(line.removeprefix("#").strip() for line in lines)


@contextlib.contextmanager
def known_bases(bases: Bases) -> Iterator[None]:
    """Have tasks that are made inside, in this thread, find their `mir_base` among these too."""
    token = _bases.set({**(_bases.get() or {}), **bases})
    try:
        yield
    finally:
        _bases.reset(token)


def with_base(
    config: Mapping[str, Any], bases: Bases | None = None, within: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A task's configuration on top of the MIR task that its `mir_base` names.

    Args:
        config: of the task.
        bases: to look in; the packaged tasks and those of `known_bases` if not given. A base of the
            task's own name is the packaged task.
        within: bases on the way to this one.

    Raises:
        MIRError: `mir_base` names no task, or bases name each other.
    """
    own = dict(config)
    base = own.pop(BASE, None)
    if base is None:
        return own
    if bases is None:
        bases = {**packaged_tasks(), **(_bases.get() or {})}
    if base == own.get("task") and base in packaged_tasks():
        bases = {**bases, base: packaged_tasks()[base]}
    elif base == own.get("task") or base in within:
        raise MIRError(f"mir_base goes round in a circle: {' -> '.join([*within, base])}")
    if base not in bases:
        raise MIRError(
            f"task {own.get('task')}: mir_base is {base!r}, and no MIR task has that name"
            f"{did_you_mean(base, bases)}: name one that `mir-task tasks` lists, or one in the folder "
            "of --include_path"
        )
    found = bases[base]
    found = _read(found) if isinstance(found, Path) else found
    return {**with_base(found, bases, (*within, base)), **own}


def read_task(path: Path, bases: Bases) -> dict[str, Any]:
    """A task's configuration from its YAML file, with its base's."""
    return with_base(_read(path), bases)


def is_mir_file(path: Path) -> bool:
    """Whether a YAML file, or one that it includes, is of a MIR task by its keys or its class."""
    try:
        config = _read(path)
    except MIRError:  # the harness tells what is wrong with it
        return False
    return bool(mir_keys(config)) or str(config.get("class", "")).endswith("MIRTask")


def _read(path: Path, within: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A YAML file's content, with that of the files it includes, as lmms-eval reads them."""
    try:
        config = yaml.load(path.read_text("utf-8"), _Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise MIRError(
            f"{path.absolute()} is no YAML that can be read: {' '.join(str(error).split())}"
        ) from error
    own = config if isinstance(config, dict) else {}
    included = own.pop("include", None) or []
    found: dict[str, Any] = {}
    for name in reversed([included] if isinstance(included, str) else included):
        other = Path(name) if Path(name).is_file() else path.parent / name
        if other in within:
            raise MIRError(f"include goes round in a circle: {' -> '.join(map(str, [*within, other]))}")
        found |= _read(other, (*within, other))
    return found | own


def mir_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `mir_*` keys of a configuration."""
    return {key: value for key, value in config.items() if str(key).startswith(PREFIX)}


def check_other_keys(config: Mapping[str, Any], of_the_harness: Collection[str]) -> None:
    """Raise MIRError for keys that are neither of MIR nor of the harness, such as `documents`."""
    of_mir = [f"{PREFIX}{key}" for key in Settings.model_fields]
    for key in config:
        if not str(key).startswith(PREFIX) and key not in of_the_harness:
            hint = did_you_mean(key, [*of_mir, BASE, *of_the_harness])
            raise MIRError(
                f"task {config['task']}: {key!r} is no key of a task{hint}; MIR's begin with {PREFIX}"
            )
