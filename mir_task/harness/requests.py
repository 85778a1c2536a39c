"""The request type `mir_prefill`: the harness's requests measured, and what is written of them."""

import functools
import inspect
import itertools
import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from loguru import logger

from mir_task.documents.document import Document
from mir_task.files import versions, write_json
from mir_task.harness.adapter import Adapter
from mir_task.harness.task import SPLIT, MIRTask
from mir_task.measuring.passes import Measurement, measure_together
from mir_task.measuring.processes import all_gather, on_every_rank, rank, world_size
from mir_task.plugin import tasks_within
from mir_task.reports.report import write_report

_SECRET = re.compile(r"\b((?!\w*tokenizer)\w*(?:key|token|secret|password|auth)\w*)=[^,]*", re.I)


def mir_prefill(lm: lmms, requests: list[Instance]) -> list[tuple[str, dict[str, int]]]:
    """Answer MIR's requests on a loaded adapter; `getattr(lm, "mir_prefill")` of the evaluator.

    One call holds the requests of all MIR tasks of the run. Each task is measured, merged over the
    processes and written to disk before the next, also where one before it cannot be measured: that
    one's scores are N/A, and the reason stands in the log and in a file beside the results.

    Raises:
        MIRError: on every process, where no task of the run has anything to show.
    """
    world_size()  # processes that cannot be merged are found before anything runs
    _keep_out_of_the_efficiency_summary()
    counted: dict[tuple[str, int], dict[str, Any]] = {}
    failures: list[Exception] = []
    try:
        run = _run_of_the_harness()
    except Exception as error:  # noqa: BLE001 - the values still reach the harness's own JSON
        logger.error(f"no side files: the harness's run cannot be read: {type(error).__name__}: {error}")
        unknown = dict.fromkeys(("model", "model_args", "model_name"), "")
        run = {**unknown, "stem": None, "others": False}
    # A process may have no document of a task, and still takes its part in merging.
    names = all_gather([request.metadata["task"] for request in requests])
    for name in dict.fromkeys(itertools.chain(*names)):
        task = MIRTask.by_name[name]
        own = [request for request in requests if request.metadata["task"] == name]
        try:
            make = functools.partial(Adapter, lm, task.settings)
            measured = measure_together(make, list(adapter_documents(task, own)), task.settings, name)
        except Exception as error:  # noqa: BLE001 - told below, as on every other process
            logger.error(f"{name}: {error}")
            failures.append(error)
            task.failure = error
            if rank() == 0:
                _note_failure(task, run, error)
            continue
        with on_every_rank():
            if rank() == 0:
                _conclude(lm, task, measured, run)
        seen = measured.log.documents.values()
        counted |= {(name, document["row"]): document for document in seen}
    if failures and not counted and not run["others"]:
        raise failures[0]
    return [_answer(counted.get((r.metadata["task"], r.doc_id))) for r in requests]


def adapter_documents(task: MIRTask, requests: list[Instance]) -> Iterator[Document]:
    """The documents of a process's requests, in their order.

    `--repeats` sends a document several times, and the harness fills processes up with copies of their
    last request.
    """
    rows, name = task.test_docs(), task.config.task
    for row in sorted({r.doc_id for r in requests if not r.metadata.get("__padding_only__")}):
        values = rows[row]
        yield Document(
            values["id"], row, values["text"], task.doc_to_visual, name, SPLIT, values["fault"]
        )


def documents_of(lm: lmms, config: Mapping[str, Any]) -> tuple[MIRTask, list[Document]]:
    """A task and its documents for a loaded adapter, outside a run of the harness.

    Raises:
        MIRError: as `MIRTask`.
    """
    task = MIRTask(dict(config))
    task.build_all_requests(rank=0, world_size=1)
    lm.task_dict[task.name] = task.dataset
    return task, list(adapter_documents(task, task.instances))


def _keep_out_of_the_efficiency_summary() -> None:
    """Have the harness sum up tokens of benchmarks alone: MIR's requests generate nothing."""
    from lmms_eval import evaluator

    summarise = evaluator.build_efficiency_summary
    if hasattr(summarise, "without_mir"):
        return

    def without_mir(results: dict[str, Any]) -> Any:
        samples = results.get("samples")
        if not isinstance(samples, dict):
            return summarise(results)
        others = {name: rows for name, rows in samples.items() if name not in MIRTask.by_name}
        return summarise({**results, "samples": others})

    without_mir.without_mir = True  # type: ignore[attr-defined]
    evaluator.build_efficiency_summary = without_mir


def _answer(document: dict[str, Any] | None) -> tuple[str, dict[str, int]]:
    """Token counts of one request, in the form that reaches the harness's samples."""
    if document is None:  # skipped, or a padding request
        return "{}", {}
    counts = {key: document[key] for key in ("vision_tokens", "text_tokens")}
    return json.dumps(counts), {"input_tokens": document["tokens"]}


def _note_failure(task: MIRTask, run: Mapping[str, Any], error: Exception) -> None:
    """Write beside the results why a task has none."""
    if run["stem"] is None:
        return
    why = {
        "task": task.name,
        **{key: run[key] for key in ("model", "model_args", "model_name")},
        "why": str(error),
        "settings": task.settings.keys(),
        "versions": versions(),
    }
    try:
        write_json(Path(f"{run['stem']}_failed_{task.name}.json"), why)
    except OSError as failure:
        logger.error(f"{task.name}: {failure}")


def _conclude(lm: lmms, task: MIRTask, measured: Measurement, run: Mapping[str, Any]) -> None:
    """Keep the task's result and write its report."""
    name = task.config.task
    task.result, log = measured.result, measured.log
    warnings = log.warnings(task.result, task.settings.modality)
    for warning in warnings:
        logger.warning(f"{name}: {warning}")
    ordered = sorted(log.documents.items(), key=lambda item: item[1]["row"])
    report = {
        "task": name,
        "model": run["model"],
        "model_args": run["model_args"],
        "model_name": run["model_name"],
        "adapter": f"{type(lm).__module__}.{type(lm).__name__}",
        **log.facts,
        "settings": task.settings.keys(),
        "documents": [{"id": document_id, **seen} for document_id, seen in ordered],
        "skipped": log.skipped,
        "traps": log.traps,
        "warnings": [*warnings, *measured.notes],
        "plan": measured.plan,
        "versions": versions(),
        "seconds": {"forwards": log.seconds, "metric": measured.seconds},
    }
    logger.info(f"{name}: MIR {task.result.mir:.4f} over {len(log.documents)} documents")
    if run["stem"] is not None:
        try:
            rows = {
                number: (vision.float().cpu().numpy(), text.float().cpu().numpy())
                for number, (vision, text) in measured.rows.items()
            }
            files = write_report(Path(f"{run['stem']}_mir_{name}"), task.result, report, rows)
            logger.info(f"{name}: {' and '.join(str(file) for file in files)}")
        except Exception as error:  # noqa: BLE001 - the value still reaches the harness's own JSON
            logger.error(f"{name}: {error}")


def without_secrets(arguments: Any) -> str:
    """Model arguments as text, without the values of keys that name a secret."""
    if isinstance(arguments, Mapping):
        arguments = ",".join(f"{key}={value}" for key, value in arguments.items())
    return _SECRET.sub(r"\1=[REDACTED]", str(arguments))


def _run_of_the_harness() -> dict[str, Any]:
    """What the running `simple_evaluate` was called with.

    A request is told neither the model's name nor where results go, and the date in the names of the
    result files is in that call's arguments alone, so they are read from its frame.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "simple_evaluate":
            break
        frame = frame.f_back
    values = frame.f_locals if frame else {}
    model, tracker = values.get("model"), values.get("evaluation_tracker")
    stem = None
    if tracker is not None and tracker.output_path:
        # The harness takes numbers for paths too, and a date that is none.
        folder = Path(str(tracker.output_path)) / str(
            tracker.general_config_tracker.model_name_sanitized
        )
        date = values.get("datetime_str") or time.strftime("%Y%m%d_%H%M%S")
        stem = folder / str(date).replace(":", "-")
    arguments = values.get("model_args") or ""
    name = tracker.general_config_tracker.model_name if tracker is not None else ""
    # The harness keeps keys and tokens out of its results; so does the side file.
    redact = (frame.f_globals if frame else {}).get("_redact_eval_config_secrets", without_secrets)
    return {
        "model": model if isinstance(model, str) else type(model).__name__,
        "model_args": redact(arguments),
        "model_name": redact(name or str(redact(arguments))),
        "stem": stem,
        "others": any(
            not hasattr(task, "mir_first") for task in tasks_within(values.get("task_dict") or {})
        ),
    }
