"""lmms-eval's side: the task class `MIRTask` and the request type `mir_prefill`.

Importing this module does what the entry point does (`mir_task.plugin`), so that a task found by
`--include_path` works where the entry point was not read.
"""

import functools
import inspect
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import datasets
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.api.task import ConfigurableTask
from loguru import logger

from mir_task.adapter import Adapter
from mir_task.data import documents
from mir_task.distributed import all_gather, on_every_rank, rank, world_size
from mir_task.media import open_media
from mir_task.passes import Whole, measure_together
from mir_task.placement import Document
from mir_task.plugin import register, yaml_paths
from mir_task.result import MIRResult
from mir_task.results import versions, write_report
from mir_task.settings import Settings, mir_keys, packaged_tasks, with_base

SPLIT = "test"
METRICS = ("mir", "mir_published_fast", "mir_stderr")
CAPTION_METRICS = ("caption_loss", "caption_ppl")


class MIRTask(ConfigurableTask):
    """A task of the harness whose score is MIR.

    Args:
        config: the task's YAML: harness keys, and the `mir_*` keys of `Settings`.

    Raises:
        MIRError: keys or values that do not fit, or data that cannot be read.
    """

    VERSION = 1
    mir_first = True
    """Read by `mir_task.plugin`, which puts such tasks before all others."""
    by_name: ClassVar[dict[str, "MIRTask"]] = {}
    """Tasks of this process; a request carries no more than its task's name."""

    def __init__(self, config: dict[str, Any]) -> None:
        config = with_base(config, {**packaged_tasks(), **yaml_paths})
        self.name = name = config["task"]
        self.settings = Settings.of(f"task {name}", mir_keys(config))
        self.metrics = METRICS + (CAPTION_METRICS if self.settings.mir_caption_ppl else ())
        self.result: MIRResult | None = None
        self._no_data: Exception | None = None
        self.metadata: dict[str, Any] = {"version": self.VERSION}
        config = {key: value for key, value in config.items() if key not in (*mir_keys(config), "class")}
        metadata = config.pop("metadata", None) or {}
        for part in metadata if isinstance(metadata, list) else [metadata]:
            self.metadata |= part
        super().__init__(
            config={
                **config,
                "test_split": SPLIT,
                "num_fewshot": 0,
                # What the harness's loggers tabulate of each sample.
                "metric_list": [{"metric": METRICS[0]}],
                "metadata": {**self.metadata, **self.settings.model_dump()},
            }
        )
        # Set after the parent's start, which knows its own request types only.
        self._config.output_type = self.OUTPUT_TYPE = "mir_prefill"
        self._config.generation_kwargs = None

    def build_all_requests(self, **options: Any) -> None:
        """Build the requests of a run, and be the task that its requests mean.

        The harness's cache of built requests goes by the task's name alone, whatever the task draws,
        so it is not used.
        """
        with on_every_rank():
            if self._no_data is not None:
                raise self._no_data
        self.result = None
        self.by_name[self.name] = self
        super().build_all_requests(**{**options, "cache_requests": False})

    def download(self, dataset_kwargs: Any = None) -> None:
        """Draw the documents. The parent's version retries and hides the cause of a failure.

        The harness has the other processes wait while the first one loads, so with several a failure
        is raised in `build_all_requests`, which all of them reach.
        """
        try:
            drawn = documents(self.name, self.settings)
        except Exception as error:
            if not torch.distributed.is_initialized():
                raise
            self._no_data = error
            drawn = datasets.Dataset.from_dict({"id": [""], "text": [""], "media": [None]})
        self.dataset = datasets.DatasetDict({SPLIT: drawn})
        self.dataset_no_image = datasets.DatasetDict({SPLIT: drawn.remove_columns("media")})

    def test_docs(self) -> datasets.Dataset:
        """Documents without their media, which only adapters ask for."""
        return self.dataset_no_image[SPLIT]

    def _prepare_metric_and_aggregation(self) -> None:
        self._metric_fn_list = dict.fromkeys(self.metrics)

    def doc_to_text(self, doc: dict[str, Any]) -> str:
        """The document's text."""
        return str(doc["text"])

    def doc_to_target(self, doc: dict[str, Any]) -> str:
        """Nothing: MIR has no right answer."""
        return ""

    def doc_to_visual(self, doc: dict[str, Any]) -> list[Any]:
        """The document's image, the path of its video, or its audio, as `open_media` gives them."""
        return [open_media(doc["media"], self.settings.mir_modality)]

    def fewshot_context(self, doc: dict[str, Any], *args: Any, **kwargs: Any) -> str:
        """The document's text alone, whatever the run says of few-shot examples."""
        return self.doc_to_text(doc)

    def construct_requests(self, doc_id: int, ctx: str, **kwargs: Any) -> Instance:
        """One request of the type `mir_prefill`."""
        # The harness's response cache skips requests that sample, and a cached answer has no
        # hidden states; nothing is sampled here.
        arguments = (ctx, {"do_sample": True}, doc_id, self.config.task, SPLIT)
        return Instance(request_type=self.OUTPUT_TYPE, arguments=arguments, idx=0, **kwargs)

    def process_results(
        self, doc: dict[str, Any], results: list[str], full_docs: Any = None
    ) -> dict[str, Any]:
        """The document's token counts; a dictionary, which the harness does not average."""
        counts: dict[str, Any] = json.loads(results[0])
        return {**{metric: {} for metric in self.metrics}, METRICS[0]: counts}

    def aggregation(self) -> dict[str, Callable[[list[Any]], Any]]:
        """The task's result, which `mir_prefill` has left here."""
        result = self.result
        assert result is not None, "the harness aggregates after the requests"
        values = result.to_dict()

        def aggregate(metric: str) -> Callable[[list[Any]], Any]:
            return lambda items: "N/A" if values[metric] is None else values[metric]

        return {metric: aggregate(metric) for metric in self.metrics}

    def higher_is_better(self) -> dict[str, bool]:
        """Lower is better."""
        return dict.fromkeys(self.metrics, False)


def mir_prefill(lm: lmms, requests: list[Instance]) -> list[tuple[str, dict[str, int]]]:
    """Answer MIR's requests on a loaded adapter; `getattr(lm, "mir_prefill")` of the evaluator.

    One call holds the requests of all MIR tasks of the run. Each task is measured, merged over the
    processes and written to disk before the next, also where one before it cannot be measured.

    Raises:
        MIRError: a task cannot be measured; on every process, once the other tasks are.
    """
    world_size()  # processes that cannot be merged are found before anything runs
    _keep_out_of_the_efficiency_summary()
    counted: dict[tuple[str, int], dict[str, Any]] = {}
    failures: list[Exception] = []
    # A process may have no document of a task, and still takes its part in merging.
    names = all_gather([request.metadata["task"] for request in requests])
    for name in dict.fromkeys(itertools.chain(*names)):
        task = MIRTask.by_name[name]
        own = [request for request in requests if request.metadata["task"] == name]
        try:
            make = functools.partial(Adapter, lm, task.settings)
            whole = measure_together(make, list(adapter_documents(task, own)), task.settings, name)
        except Exception as error:  # noqa: BLE001 - raised below, as on every other process
            logger.error(f"{name}: {error}")
            failures.append(error)
            continue
        with on_every_rank():
            if rank() == 0:
                _conclude(lm, task, whole)
        seen = whole.measured.documents.values()
        counted |= {(name, document["row"]): document for document in seen}
    if failures:
        raise failures[0]
    return [_answer(counted.get((r.metadata["task"], r.doc_id))) for r in requests]


def adapter_documents(task: MIRTask, requests: list[Instance]) -> Iterator[Document]:
    """The documents of a process's requests, in their order, then the copies that count nowhere.

    `--repeats` sends a document several times, and processes are filled up with copies of their last
    request, which run where every process has to take part.
    """
    rows, name = task.test_docs(), task.config.task
    padding = [r.doc_id for r in requests if r.metadata.get("__padding_only__")]
    counted = {r.doc_id for r in requests if not r.metadata.get("__padding_only__")}
    for number, row in enumerate([*sorted(counted), *padding]):
        values, counts = rows[row], number < len(counted)
        yield Document(values["id"], row, values["text"], task.doc_to_visual, counts, name, SPLIT)


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


def _conclude(lm: lmms, task: MIRTask, whole: Whole) -> None:
    """Keep the task's result and write its report."""
    name = task.config.task
    task.result, measured = whole.result, whole.measured
    warnings = measured.warnings(task.result, task.settings.mir_modality)
    for warning in warnings:
        logger.warning(f"{name}: {warning}")
    run = _run_of_the_harness()
    ordered = sorted(measured.documents.items(), key=lambda item: item[1]["row"])
    report = {
        "task": name,
        "model": run["model"],
        "model_args": run["model_args"],
        "model_name": run["model_name"],
        "adapter": f"{type(lm).__module__}.{type(lm).__name__}",
        **measured.facts,
        "settings": task.settings.model_dump(),
        "documents": [{"id": document_id, **seen} for document_id, seen in ordered],
        "skipped": measured.skipped,
        "warnings": [*warnings, *whole.notes],
        "plan": whole.plan,
        "versions": versions(),
        "seconds": {"forwards": measured.seconds, "metric": whole.seconds},
    }
    logger.info(f"{name}: MIR {task.result.mir:.4f} over {len(measured.documents)} documents")
    if run["stem"] is not None:
        try:
            files = write_report(Path(f"{run['stem']}_mir_{name}"), task.result, report, whole.rows)
            logger.info(f"{name}: {' and '.join(str(file) for file in files)}")
        except Exception as error:  # noqa: BLE001 - the value still reaches the harness's own JSON
            logger.error(f"{name}: side file or plot could not be written: {error}")


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
        folder = Path(tracker.output_path) / tracker.general_config_tracker.model_name_sanitized
        stem = folder / values["datetime_str"].replace(":", "-")
    arguments = values.get("model_args") or ""
    name = tracker.general_config_tracker.model_name if tracker is not None else ""
    # The harness keeps keys and tokens out of its results; so does the side file.
    redact = (frame.f_globals if frame else {}).get("_redact_eval_config_secrets", str)
    return {
        "model": model if isinstance(model, str) else type(model).__name__,
        "model_args": redact(arguments),
        "model_name": redact(name or str(redact(arguments))),
        "stem": stem,
    }


register()
