"""A MIR task of the harness: `MIRTask`."""

import json
from collections.abc import Callable
from typing import Any, ClassVar

import datasets
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.task import ConfigurableTask

from mir_task.documents.draw import documents
from mir_task.documents.media import open_media
from mir_task.measuring.processes import on_every_rank
from mir_task.result import MIRResult
from mir_task.settings import Settings
from mir_task.tasks import mir_keys, packaged_tasks, registered, with_base

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
        config = with_base(config, {**packaged_tasks(), **registered})
        self.name = name = config["task"]
        self.settings = Settings.of(f"task {name}", mir_keys(config))
        self.metrics = METRICS + (CAPTION_METRICS if self.settings.caption_ppl else ())
        self.result: MIRResult | None = None
        self.failure: Exception | None = None
        """Why there is no result, where the requests were answered without one."""
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
                "metadata": {**self.metadata, **self.settings.keys()},
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
        self.result = self.failure = None
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
            drawn = datasets.Dataset.from_dict(
                {"id": [""], "text": [""], "media": [None], "fault": [None]}
            )
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
        """Empty: MIR has no reference answer."""
        return ""

    def doc_to_visual(self, doc: dict[str, Any]) -> list[Any]:
        """The document's image, the path of its video, or its audio, as `open_media` gives them."""
        return [open_media(doc["media"], self.settings.modality)]

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
        """The task's result, which `mir_prefill` has left here; N/A where it could not be measured."""
        assert self.result is not None or self.failure is not None, "aggregated before its requests"
        values = {} if self.result is None else self.result.to_dict()

        def aggregate(metric: str) -> Callable[[list[Any]], Any]:
            value = values.get(metric)
            return lambda items: "N/A" if value is None else value

        return {metric: aggregate(metric) for metric in self.metrics}

    def higher_is_better(self) -> dict[str, bool]:
        """Lower is better."""
        return dict.fromkeys(self.metrics, False)
