"""What runs have left on disk: side files, results of harnesses, and scores of other tools."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from mir_task.errors import MIRError
from mir_task.files import files_below
from mir_task.reports import vlmevalkit
from mir_task.reports.ground import Ground, ground_of
from mir_task.reports.side_file import parsed, read_side_file
from mir_task.reports.tools import LM_EVAL, OWN, VLMEVALKIT, column
from mir_task.result import MIRResult

_WHERE_IT_RUNS = {"device", "device_map", "batch_size", "max_batch_size", "attn_implementation"}
# What `mir-task samples` writes, and the reason why a task has no side file.
_OTHER = re.compile(r"^samples_|^[\d_]+_failed_")
# What lm-evaluation-harness writes of a run: results_2026-01-01T00-00-00.000000.json.
_OF_LM_EVAL = re.compile(r"_(\d{4})-(\d\d)-(\d\d)T(\d\d)-(\d\d)-(\d\d)(\.\d+)?\.json$")
_CAPTIONS = ("caption_loss", "caption_gain", "caption_gain_stderr")
_BESIDE_MIR = ("mir_stderr", "mir_published_fast", *_CAPTIONS)  # in the order of `Record`'s fields


class Model(NamedTuple):
    """A model as the harness was told to load it."""

    adapter: str
    """What `--model` named."""
    name: str
    """The checkpoint's path or id; the folder of the files where the model was handed over loaded."""
    arguments: frozenset[str]
    """Of `--model_args`, all that can change a value: not the devices it ran on."""

    @classmethod
    def of(
        cls, path: Path, adapter: str, name: str, arguments: str | Mapping[str, Any] | None
    ) -> "Model":
        """From what the harness and the side file at `path` note."""
        if isinstance(arguments, Mapping):
            parts = [f"{key}={value}" for key, value in arguments.items()]
        else:
            parts = [part.strip() for part in (arguments or "").split(",")]
        kept = {part.rstrip("/") for part in parts if part and part.split("=")[0] not in _WHERE_IT_RUNS}
        return cls(adapter, name.rstrip("/") or str(path.parent), frozenset(kept))


@dataclass(frozen=True)
class Record:
    """One MIR value of one model."""

    path: Path
    date: str
    """As the file's name has it; it orders runs."""
    model: Model
    task: str
    mir: float
    mir_stderr: float | None
    mir_published_fast: float | None
    caption_loss: float | None = None
    caption_gain: float | None = None
    caption_gain_stderr: float | None = None
    ground: Ground | None = None
    """None where only the harness's results are left, which do not say it."""
    result: MIRResult | None = None
    rows: Mapping[str, int] | None = None
    """Position of each document in the draw, from which its group follows."""
    details: Mapping[str, Any] | None = None
    """What else a reader may ask for."""


class Scores(NamedTuple):
    """Benchmark scores of one run."""

    path: Path
    date: str
    model: Model
    values: Mapping[str, float]
    """By task, metric and filter."""
    higher_is_better: Mapping[str, bool | None]
    tool: str = OWN
    """That wrote them."""


class Runs(NamedTuple):
    """All that was found."""

    records: list[Record]
    scores: list[Scores]
    faults: list[str]
    """Which files were left out, and what is wrong with each."""

    @property
    def side_files(self) -> list[Record]:
        """Records of side files, without those of which only the harness's results are left."""
        return [record for record in self.records if record.ground is not None]


def read_runs(folders: Iterable[Path], same_models: Mapping[str, str] | None = None) -> Runs:
    """Side files, harnesses' results and other tools' scores in folders and below, oldest first.

    Links are followed. Hidden folders are left out: `mir-task zoo` keeps there what is not whole.

    Args:
        folders: to look into.
        same_models: names that other tools have for a model, and its name beside its MIR.

    Raises:
        MIRError: `same_models` has a name that is nowhere, or a folder cannot be read.
    """
    same = same_models or {}
    records: list[Record] = []
    scores: list[Scores] = []
    faults: list[str] = []
    paths = {
        path.resolve(): path
        for folder in folders
        for path in files_below(folder)
        if path.suffix in (".json", ".csv", ".xlsx") and not path.name.startswith(".")
    }
    for path in sorted(paths.values(), key=lambda path: (path.name, path)):
        try:
            if path.match("*_mir_*.json") and not _OTHER.search(path.name):
                records.append(read_record(path))
            elif path.name.endswith("_results.json"):
                found, of_run = _read_results(path, path.name.removesuffix("_results.json"), OWN)
                records += found
                scores.append(of_run)
            elif date := _OF_LM_EVAL.search(path.name):
                day, time = "".join(date.groups()[:3]), "".join(date.groups()[3:6])
                found, of_run = _read_results(path, f"{day}_{time}", LM_EVAL)
                records += found
                scores.append(of_run)
            elif vlmevalkit.is_scores(path):
                scores.append(_of_vlmevalkit(vlmevalkit.read(path, same), path))
        except MIRError as error:
            faults.append(str(error))
    records.sort(key=lambda record: record.date)
    scores.sort(key=lambda of: of.date)
    whole = {(r.model, r.task, of) for r in records if r.ground for of in (r.date, r.mir)}
    records = [
        r
        for r in records
        if r.ground or not {(r.model, r.task, r.date), (r.model, r.task, r.mir)} & whole
    ]
    _check_names("model with MIR", same.values(), {r.model.name for r in records})
    _check_names("model with scores", same, {of.model.name for of in scores})
    scores = [of._replace(model=_renamed(of.model, same)) for of in scores]
    return Runs(records, scores, faults)


def _check_names(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    if unknown := sorted(set(names) - set(known)):
        there = f"there are {', '.join(sorted(known))}" if known else "there is none at all"
        raise MIRError(f"--same_model: {', '.join(unknown)} is no {what}; {there}")


def _renamed(model: Model, same: Mapping[str, str]) -> Model:
    return model._replace(name=same.get(model.name, model.name))


def without_mir(runs: Runs) -> list[str]:
    """Models of which other tools have scores and which have no MIR, each with the tool."""
    known = {record.model.name for record in runs.records}
    others = {(of.model.name, of.tool) for of in runs.scores if of.tool != OWN}
    return [f"{name} ({tool})" for name, tool in sorted(others) if name not in known]


def read_record(path: Path) -> Record:
    """One side file.

    Raises:
        MIRError: as `read_side_file`.
    """
    report = read_side_file(path)
    rows = {document.id: document.row for document in report.documents}
    fast = report.mir_published_fast
    return Record(
        path=path,
        date=path.name.split("_mir_")[0],
        model=Model.of(path, report.model, report.model_name, report.model_args),
        task=report.task,
        mir=report.mir,
        mir_stderr=report.mir_stderr,
        mir_published_fast=None if math.isnan(fast) else fast,
        **{name: getattr(report, name) for name in _CAPTIONS},
        ground=ground_of(report),
        result=report,
        rows=rows,
        details={
            "adapter": report.adapter,
            "arguments": str(report.model_args),
            "model class": report.model_class,
            "dtype": report.hidden_dtype,
            "vision tokens": report.layers[0].vision_tokens,
            "text tokens": report.layers[0].text_tokens,
            "versions": ", ".join(f"{name} {of}" for name, of in report.versions.items()),
            "warnings": report.warnings,
        },
    )


class _RunConfig(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    model: str
    model_args: str | dict[str, Any] | None


class _Results(BaseModel):
    """What the harness writes of a run, as far as it is read."""

    model_config = ConfigDict(protected_namespaces=())

    config: _RunConfig
    model_name: str | None = None
    results: dict[str, dict[str, Any]]
    higher_is_better: dict[str, dict[str, bool | None] | None] = Field(default_factory=dict)


def _read_results(path: Path, date: str, tool: str) -> tuple[list[Record], Scores]:
    """MIR, as far as a harness notes it, and benchmark scores of one run."""
    content = parsed(_Results, path, f"results file of {tool}")
    model = Model.of(path, content.config.model, content.model_name or "", content.config.model_args)
    records, values, better = [], {}, {}
    for task, metrics in content.results.items():
        numbers = {key: value for key, value in metrics.items() if _is_number(value)}
        if any(key.startswith("mir,") for key in metrics):
            if "mir,none" in numbers:
                others = (numbers.get(f"{key},none") for key in _BESIDE_MIR)
                records.append(Record(path, date, model, task, numbers["mir,none"], *others))
            continue
        upwards = content.higher_is_better.get(task) or {}
        for key, value in numbers.items():
            metric, _, filtered = key.partition(",")
            if filtered and "_stderr" not in metric:
                name = f"{task} {metric}" + (f" ({filtered})" if filtered != "none" else "")
                name = column(name, tool)
                values[name], better[name] = float(value), upwards.get(metric)
    return records, Scores(path, date, model, values, better, tool)


def _of_vlmevalkit(found: vlmevalkit.Found, path: Path) -> Scores:
    values = {column(name, VLMEVALKIT): value for name, value in found.values.items()}
    better = {column(name, VLMEVALKIT): vlmevalkit.higher_is_better(name) for name in found.values}
    model = Model(VLMEVALKIT, found.model, frozenset())
    return Scores(path, found.date, model, values, better, VLMEVALKIT)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
