"""Many models, each in a process of its own, so that a night's batch survives.

A run writes into a temporary folder, which is renamed when its results are whole; so what stands under
a run's name is finished, whatever happened to other runs or to this command. A run that failed leaves a
file that says why.
"""

import contextlib
import fnmatch
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, Field

from mir_task.commands.guard import RUN_VARIABLE, end_run
from mir_task.commands.zoo_list import Options, Run, command
from mir_task.errors import MIRError
from mir_task.files import write_json
from mir_task.progress import last_line, progress
from mir_task.reports.side_file import parsed
from mir_task.settings import RUNS_VARIABLE

_POLL = 0.2
# Seconds in which a run's guard ends it.
_ENDING = 30.0
# Bytes left on a disk that counts as full.
_LITTLE = 2**16


class _Failure(BaseModel):
    """What a run, or one task of it, notes where it failed."""

    why: str


class _Results(BaseModel):
    """What the harness writes of a run, as far as it is judged by it."""

    results: dict[str, dict[str, Any]]
    group_subtasks: dict[str, Any] = Field(default_factory=dict)
    configs: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def has(self, wanted: str) -> bool:
        """Whether there are results of a task, group, tag or file, or of some that a pattern names."""
        if Path(wanted).suffix in (".yaml", ".yml"):
            return bool(self.results)
        tags = (config.get("tag") or () for config in self.configs.values())
        tagged = {tag for of in tags for tag in ([of] if isinstance(of, str) else of)}
        groups = {name for name, tasks in self.group_subtasks.items() if tasks}
        measured = {name for name, scores in self.results.items() if scores}
        return any(fnmatch.fnmatch(name, wanted) for name in measured | groups | tagged)


class Outcome(NamedTuple):
    """What became of a run."""

    run: Run
    state: str
    """`done`, `failed`, `finished before`, or `failed before`."""
    detail: str
    """MIR of each task, or why it failed."""
    seconds: float = 0.0


class Zoo:
    """The runs of a list in an output folder.

    Args:
        runs: of the list.
        folder: for results, logs and what failed; made where missing.
        options: how to start them.

    Raises:
        MIRError: the folder cannot be written to.
    """

    def __init__(self, runs: Sequence[Run], folder: Path, options: Options) -> None:
        self.runs = runs
        self.folder = folder
        self.options = options
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".probe-{os.getpid()}"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise MIRError(f"{folder.absolute()} cannot be written to: {error}") from error

    def done(self, run: Run) -> Path:
        """Where the results of a finished run are."""
        return self.folder / run.name

    def log(self, run: Run) -> Path:
        """What the run printed."""
        return self.folder / f"{run.name}.log"

    def _failure(self, run: Run) -> Path:
        return self.folder / f"{run.name}.failed.json"

    def before(self, run: Run) -> Outcome | None:
        """What became of a run when it ran before; None where it did not, or was broken off."""
        if self.done(run).is_dir():
            try:
                return Outcome(run, "finished before", _values(whole_results(self.done(run), run)))
            except MIRError as error:  # another program has been at it
                return Outcome(run, "failed before", str(error))
        if self._failure(run).is_file():
            try:
                why = parsed(_Failure, self._failure(run), "record of a failure").why
            except MIRError as error:
                why = str(error)
            return Outcome(run, "failed before", why)
        return None

    def run(
        self, *, retry_failed: bool, watch: Callable[[list["Process"]], None] = lambda running: None
    ) -> Iterator[Outcome]:
        """Run what is not finished; yields each run's outcome as it comes, those from before first.

        Args:
            retry_failed: run again what failed before.
            watch: is given the runs that are running, several times a second.
        """
        waiting: list[Run] = []
        for run in self.runs:
            known = self.before(run)
            if known is None or (retry_failed and known.state == "failed before"):
                waiting.append(run)
            else:
                yield known
        free = list(self.options.gpus) or [""]
        running: list[Process] = []
        try:
            while waiting or running:
                while waiting and free:
                    running.append(Process(self, waiting.pop(0), free.pop(0)))
                watch(running)
                time.sleep(_POLL)
                for process in [process for process in running if process.ended()]:
                    running.remove(process)
                    free.append(process.gpu)
                    yield process.outcome()
        finally:
            for process in running:
                process.kill()


class Process:
    """A run that is running."""

    def __init__(self, zoo: Zoo, run: Run, gpu: str) -> None:
        self.zoo = zoo
        self.run = run
        self.gpu = gpu
        self.timed_out = False
        self.output = Path()
        self.started = time.monotonic()
        self.process: subprocess.Popen[bytes] | None = None
        self.error = ""
        self.name = f"{run.name}-{os.getpid()}-{time.time_ns()}"
        environment = {**os.environ, **zoo.options.environment, RUN_VARIABLE: self.name}
        if gpu:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
            environment[RUNS_VARIABLE] = str(len(zoo.options.gpus))
        try:
            zoo._failure(run).unlink(missing_ok=True)
            for broken_off in zoo.folder.glob(f".{run.name}.*.partial"):
                shutil.rmtree(broken_off, ignore_errors=True)
            if zoo.done(run).exists():  # with results that cannot be read
                zoo.done(run).rename(zoo.folder / f"{run.name}.damaged-{time.time_ns()}")
            # A folder of its own: processes of a launcher that was killed may write to the last one.
            self.output = zoo.folder / f".{run.name}.{uuid.uuid4().hex[:8]}.partial"
            self.output.mkdir()  # with the mode that the umask leaves
            (self.output / "config.yaml").write_text(yaml.safe_dump([dict(run.config)]), "utf-8")
            with zoo.log(run).open("wb") as log:
                guard = [sys.executable, "-m", "mir_task.commands.guard"]
                self.process = subprocess.Popen(
                    [*guard, *command(run, self.output, zoo.options)],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.PIPE,  # which ends with this process, whatever ends that
                    env=environment,
                    start_new_session=True,
                )
        except OSError as error:
            self.error = f"it could not be started: {error}"

    def ended(self) -> bool:
        """Whether the run is over; one that takes too long is ended here."""
        if self.process is None:
            return True
        if self.process.poll() is not None:
            self.kill()  # what the guard has left where it was killed itself
            return True
        limit = self.zoo.options.time_limit
        if limit is not None and time.monotonic() - self.started > limit:
            self.timed_out = True
            self.kill()
            return True
        return False

    def progress(self) -> str:
        """How long it runs and what it said last."""
        seconds, said = time.monotonic() - self.started, last_line(self.zoo.log(self.run))
        return progress(self.run.name, seconds, said or "starting")

    def kill(self) -> None:
        """End the run and whatever it started."""
        if self.process is None or self.process.stdin is None:
            return
        self.process.stdin.close()
        try:
            self.process.wait(_ENDING)
        except subprocess.TimeoutExpired:
            self.process.kill()
        end_run(self.name)

    def outcome(self) -> Outcome:
        """Judged by the results that the run left, not by its exit code."""
        seconds = time.monotonic() - self.started
        try:
            if self.timed_out:
                raise MIRError(
                    f"it took longer than its time limit of {self.zoo.options.time_limit:g} s"
                )
            if self.error:
                raise MIRError(self.error)
            values = _values(whole_results(self.output, self.run))
            shutil.copy(self.zoo.log(self.run), self.output / "lmms-eval.log")
            self.output.rename(self.zoo.done(self.run))
        except (MIRError, OSError) as error:
            why = f"{error}{self._last_words()}"
            if shutil.disk_usage(self.zoo.folder).free < _LITTLE:
                why = f"the disk of {self.zoo.folder} is full; {why}"
            self._record(why)
            return Outcome(self.run, "failed", why, seconds)
        self.zoo.log(self.run).unlink(missing_ok=True)
        return Outcome(self.run, "done", values, seconds)

    def _record(self, why: str) -> None:
        try:
            write_json(self.zoo._failure(self.run), {"run": self.run.name, "why": why})
        except OSError as error:  # the summary still names the failure
            print(f"{self.zoo._failure(self.run)}: {error}", file=sys.stderr)  # noqa: T201

    def _last_words(self) -> str:
        """The last error in the run's log."""
        try:
            lines = self.zoo.log(self.run).read_text("utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b.*:? ", line)]
        return f" ({errors[-1].strip()[:300]})" if errors else ""


def whole_results(folder: Path, run: Run) -> dict[str, dict[str, Any]]:
    """Results of the harness by task, where every task of a run has some.

    Raises:
        MIRError: there are none, they cannot be read, or a task is missing.
    """
    paths = sorted(folder.rglob("*_results.json"))
    if not paths:
        raise MIRError("it wrote no results")
    written = parsed(_Results, paths[-1], "results file of the harness")
    results = written.results
    missing = [task for task in run.tasks if not written.has(task)]
    if missing:
        raise MIRError(f"its results have no {', '.join(missing)}")
    for task, scores in results.items():
        if scores.get("mir,none") == "N/A":
            raise MIRError(f"{task} could not be measured{_why(folder, task)}")
    return results


def _why(folder: Path, task: str) -> str:
    """The reason that a run noted for a task without a value."""
    for path in sorted(folder.rglob(f"*_failed_{task}.json")):
        with contextlib.suppress(MIRError):
            return f": {parsed(_Failure, path, 'record of a failure').why}"
    return ""


def _values(results: Mapping[str, Mapping[str, Any]]) -> str:
    values = {task: scores.get("mir,none") for task, scores in results.items()}
    return ", ".join(f"{task} {v:.4f}" for task, v in values.items() if isinstance(v, float))
