"""The models of a zoo: a list as lmms-eval's own `--config` takes it, and the command of each run."""

import hashlib
import json
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mir_task.errors import MIRError
from mir_task.files import files_below, versions

LAUNCHERS = {
    "none": (),
    "torchrun": ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "{processes}"),
    "accelerate": ("-m", "accelerate.commands.launch", "--num_processes", "{processes}"),
}
"""What stands between `python` and `-m lmms_eval`."""


@dataclass(frozen=True)
class Options:
    """How runs are started; nothing that a value depends on."""

    launcher: str = "none"
    processes: int = 1
    """Of each run, with a launcher."""
    time_limit: float | None = None
    """Seconds of a run."""
    environment: Mapping[str, str] = field(default_factory=dict)
    gpus: tuple[str, ...] = ()
    """One run at a time on each; one run at a time without."""


@dataclass(frozen=True)
class Run:
    """One model of the list."""

    name: str
    """Of the run's folder: the model's, and a digest of what the values depend on."""
    config: Mapping[str, Any]
    """Arguments of lmms-eval, by name."""

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks or groups."""
        tasks = self.config["tasks"]
        return tasks.split(",") if isinstance(tasks, str) else list(tasks)


def read(path: Path, tasks: Sequence[str] = ()) -> list[Run]:
    """The runs of a list.

    Args:
        path: YAML of a mapping, or of a list of mappings: arguments of lmms-eval by name, and `env`.
        tasks: in the place of the entries' own.

    Raises:
        MIRError: the file cannot be read, or an entry has no model or no tasks.
    """
    runs: dict[str, Run] = {}
    for number, entry in enumerate(entries(path), start=1):
        run = run_of(entry, f"{path}: entry {number}", tasks)
        if run.name in runs:
            raise MIRError(f"{path}: entry {number} is the same as one before it: {entry!r}")
        runs[run.name] = run
    return list(runs.values())


def entries(path: Path) -> list[Any]:
    """What stands in a list, unchecked.

    Raises:
        MIRError: the file cannot be read.
    """
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise MIRError(f"{path.absolute()} cannot be read: {error}") from error
    return found if isinstance(found, list) else [found]


def run_of(entry: Any, where: str, tasks: Sequence[str] = ()) -> Run:
    """The run of one entry.

    Args:
        entry: of a list.
        where: it stands, for messages.
        tasks: in the place of its own.

    Raises:
        MIRError: it has no model or no tasks.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("model"), str):
        raise MIRError(f"{where} is no mapping with a `model` of lmms-eval: {entry!r}")
    config = {**entry, **({"tasks": ",".join(tasks)} if tasks else {})}
    if not config.get("tasks"):
        raise MIRError(f"{where} has no `tasks`; name them there or by --tasks")
    config.pop("output_path", None)
    return Run(_name(config), config)


def _name(config: Mapping[str, Any]) -> str:
    found = re.search(r"pretrained=([^,]+)", str(config.get("model_args", "")))
    model = "-".join([config["model"], *(Path(found[1]).parts[-2:] if found else ())])
    depends = json.dumps([config, versions(), *_of_tasks(config)], sort_keys=True, default=str)
    digest = hashlib.sha256(depends.encode()).hexdigest()[:10]
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', model).strip('-')}-{digest}"


def _of_tasks(config: Mapping[str, Any]) -> Iterator[Any]:
    """What a run depends on beside its arguments: files of tasks of one's own."""
    tasks = Path(str(config.get("include_path") or ""))
    if config.get("include_path") and tasks.is_dir():
        files = sorted(path for path in files_below(tasks) if path.suffix in (".yaml", ".yml", ".py"))
        yield [[str(path), hashlib.sha256(path.read_bytes()).hexdigest()] for path in files]


def command(run: Run, output: Path, options: Options) -> list[str]:
    """The command of a run that writes into `output`, where its arguments stand in `config.yaml`."""
    launcher = [part.format(processes=options.processes) for part in LAUNCHERS[options.launcher]]
    start = [sys.executable, *launcher, "-m", "lmms_eval"]
    return [*start, "--config", str(output / "config.yaml"), "--output_path", str(output)]


def shell_commands(path: Path, runs: Iterable[Run], arguments: Sequence[str]) -> list[str]:
    """One command a run, for a scheduler: each does nothing where its run is finished.

    Args:
        path: of the list.
        runs: of the list.
        arguments: of `mir-task zoo` besides the list and the names of runs.
    """
    start = ["mir-task", "zoo", str(path)]
    return [shlex.join([*start, "--only", run.name, *arguments]) for run in runs]
