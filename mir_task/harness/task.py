"""A MIR task of the harness: `MIRTask`, and what stands in for one that cannot be loaded."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import datasets
from lmms_eval.api.instance import Instance
from lmms_eval.api.task import ConfigurableTask, TaskConfig

from mir_task.documents.draw import documents
from mir_task.documents.media import open_media
from mir_task.documents.others import row_of_other_medium
from mir_task.errors import MIRError
from mir_task.harness.scores import METRICS, aggregation, higher_is_better, metrics_of, of_document
from mir_task.result import MIRResult
from mir_task.settings import Settings
from mir_task.tasks import check_other_keys, mir_keys, with_base

SPLIT = "test"

_MEANT_FOR_MIR = {"task", "task_alias", "tag", "group", "group_alias", "metadata"}
_OF_BENCHMARKS = {field.name for field in dataclasses.fields(TaskConfig)} - _MEANT_FOR_MIR
"""Keys of the harness about answers and their scores, of which MIR has none."""
_PADDING = "__padding_only__"
"""Mark of requests that fill up a process which has fewer than others."""


@dataclasses.dataclass
class Request(Instance):
    """A request of the type `mir_prefill`, which knows the task that it is of."""

    task: Any = dataclasses.field(default=None, repr=False)

    @property
    def counts(self) -> bool:
        """Whether its document is to be measured, not only run."""
        return not self.metadata.get(_PADDING)


class MIRTask(ConfigurableTask):
    """A task of the harness whose score is MIR.

    Args:
        config: the task's YAML: harness keys, and the `mir_*` keys of `Settings`.

    Raises:
        MIRError: keys or values that do not fit, or data that cannot be read.
    """

    VERSION = 1
    OUTPUT_TYPE = "mir_prefill"
    mir_first = True
    """By which `mir_task.plugin` knows such tasks."""

    def __init__(self, config: dict[str, Any]) -> None:
        config = with_base(config)
        if not isinstance(config.get("task"), str):
            raise MIRError(f"a MIR task needs a name, `task: NAME`, which is no {config.get('task')!r}")
        self.settings = Settings.of(f"task {config['task']}", mir_keys(config))
        check_other_keys(config, {"class", *_OF_BENCHMARKS, *_MEANT_FOR_MIR})
        self.keys = self.settings.keys()
        """The task's `mir_*` keys, all of them, for what is written of it."""
        self.metrics = metrics_of(self.settings)
        try:
            self._start(config)
        except MIRError:
            raise
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise MIRError(f"task {config['task']} cannot be loaded: {why}") from error

    def _start(self, config: dict[str, Any]) -> None:
        self.result: MIRResult | None = None
        self.failure: Exception | None = None
        """Why there is no result, where the requests are answered without one."""
        self.token_counts: dict[str, dict[str, int]] = {}
        """Tokens of each measured document, by its id."""
        self.alone = True
        """Whether the run has MIR tasks only."""
        self.metadata: dict[str, Any] = {"version": self.VERSION}
        metadata = config.get("metadata") or {}
        for part in metadata if isinstance(metadata, list) else [metadata]:
            self.metadata |= part
        self.metadata.pop(_PADDING, None)
        left_out = {*mir_keys(config), "class", *_OF_BENCHMARKS}
        super().__init__(
            config={
                **{key: value for key, value in config.items() if key not in left_out},
                "test_split": SPLIT,
                "num_fewshot": 0,
                "reasoning_tags": "none",
                # What the harness's loggers tabulate of each sample.
                "metric_list": [{"metric": METRICS[0]}],
                "metadata": {**self.metadata, **self.keys},
            }
        )
        # Set after the parent's start, which knows its own request types only.
        self._config.output_type = self.OUTPUT_TYPE = MIRTask.OUTPUT_TYPE
        self._config.generation_kwargs = None
        self._drawn = self.dataset[SPLIT]
        self._limit: int | None = None
        """Of the run, in documents."""

    @property
    def name(self) -> str:
        """Under which the harness has the task."""
        return str(self.config.task)

    def rename(self, name: str) -> None:
        """Have the task stand under another name."""
        self._config.task = name

    def measures_as(self, other: "MIRTask") -> bool:
        """Whether both measure the same of the same documents."""
        return type(self) is type(other) and self.keys == other.keys

    def build_all_requests(
        self,
        *,
        limit: int | None = None,
        offset: int = 0,
        rank: int = 0,
        world_size: int = 1,
        **options: Any,
    ) -> None:
        """Build the requests of a run.

        Where there is nothing to measure, a request without a document stands for the task in each
        process, and all learn of it in `mir_prefill`. The harness's cache of built requests goes by the
        task's name alone, whatever the task draws, so it is not used.
        """
        self.result, self.token_counts = None, {}
        self.failure = self._obstacle(limit, offset, rank, world_size)
        if self.failure is None:
            self._hold(self._drawn)
        else:
            self._hold(_no_documents(offset + max(world_size, rank + 1)))
            limit = None
        self._limit = limit
        options |= {"limit": limit, "offset": offset, "rank": rank, "world_size": world_size}
        super().build_all_requests(**{**options, "cache_requests": False})

    def doc_iterator(self, *, limit: int | None = None, **options: Any) -> Iterator[tuple[int, Any]]:
        """The documents of the run; the harness has the limit of another task when it reads answers."""
        return iter(super().doc_iterator(limit=self._limit, **options))

    def _obstacle(self, limit: int | None, offset: int, rank: int, world_size: int) -> Exception | None:
        """Why a run with these options measures nothing, or not all that it says."""
        count = len(self._drawn)
        if limit == 0:
            return MIRError(f"{self.name}: --limit 0 leaves no document; leave it out for all {count}")
        if offset >= count:
            return MIRError(
                f"{self.name}: --offset {offset} leaves no document, as the task has {count}; lower it "
                "or raise mir_documents"
            )
        if rank >= world_size:
            return MIRError(
                f"{self.name}: this is process {rank} (RANK) of {world_size} (WORLD_SIZE), which would "
                "leave documents out; unset RANK, or start with torchrun or accelerate launch"
            )
        return None

    def download(self, dataset_kwargs: Any = None) -> None:
        """Draw the documents. The parent's version retries and hides the cause of a failure."""
        self._hold(documents(self.name, self.settings))

    def _hold(self, rows: datasets.Dataset) -> None:
        self.dataset = datasets.DatasetDict({SPLIT: rows})
        self.dataset_no_image = datasets.DatasetDict({SPLIT: rows.remove_columns("media")})

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

    def doc_to_other_visual(self, doc: dict[str, Any]) -> list[Any]:
        """As `doc_to_visual`, of the document whose medium stands in for this one's.

        Adapters call one document's function with all documents of a batch, so it goes by `doc` alone.
        """
        rows = self.dataset[SPLIT]
        other = self._other_row(list(rows["id"]).index(doc["id"]))
        assert other is not None, "asked for another medium where all are one"
        return self.doc_to_visual(rows[other])

    def has_other_visual(self, row: int) -> bool:
        """Whether any document has another medium than that of a row."""
        return self._other_row(row) is not None

    def _other_row(self, row: int) -> int | None:
        return row_of_other_medium(self.dataset[SPLIT], row, self.settings.seed)

    def fewshot_context(self, doc: dict[str, Any], *args: Any, **kwargs: Any) -> str:
        """The document's text alone, whatever the run says of few-shot examples."""
        return self.doc_to_text(doc)

    def construct_requests(self, doc_id: int, ctx: str, **kwargs: Any) -> Request:
        """One request of the type `mir_prefill`."""
        # The harness's response cache skips requests that sample, and a cached answer has no
        # hidden states; nothing is sampled here.
        arguments = (ctx, {"do_sample": True}, doc_id, self.name, SPLIT)
        # The harness lets the task's own metadata replace these.
        own = {"task": self.name, "doc_id": doc_id, "repeats": self.config.repeats, "split": SPLIT}
        metadata = {**kwargs.pop("metadata"), **own}
        return Request(self.OUTPUT_TYPE, arguments, 0, metadata=metadata, task=self, **kwargs)

    def process_results(
        self, doc: dict[str, Any], results: list[str], full_docs: Any = None
    ) -> dict[str, Any]:
        """The document's token counts; a dictionary, which the harness does not average.

        They are not read from the answers, which options of the harness may change.
        """
        return of_document(self.metrics, self.token_counts.get(doc["id"], {}))

    def answer(self, document_id: str) -> tuple[str, dict[str, int]]:
        """Token counts of one document, in the form that reaches the harness's samples."""
        counts = dict(self.token_counts.get(document_id, {}))
        tokens = {"input_tokens": counts.pop("tokens")} if counts else {}
        return json.dumps(counts), tokens

    def aggregation(self) -> dict[str, Callable[[list[Any]], Any]]:
        """The task's result, which `mir_prefill` has left here; N/A where it could not be measured."""
        assert self.result is not None or self.failure is not None, "aggregated before its requests"
        return aggregation(self.metrics, self.result)

    def higher_is_better(self) -> dict[str, bool]:
        """Lower is better, but for caption gain."""
        return higher_is_better(self.metrics)


class FailedTask(MIRTask):
    """A MIR task that could not be loaded: its scores are N/A, and the others keep theirs.

    Args:
        name: of the task.
        failure: why it could not be loaded.
    """

    def __init__(self, name: str, failure: Exception) -> None:
        self.keys = {}
        self.metrics = METRICS
        self._why = failure
        self._start({"task": name})
        self.failure = failure

    def _obstacle(self, *options: int | None) -> Exception:
        return self._why

    def download(self, dataset_kwargs: Any = None) -> None:
        """Nothing that could be measured."""
        self._hold(_no_documents(1))


def _no_documents(count: int) -> datasets.Dataset:
    """Rows that stand for documents where there are none."""
    empty = {"id": "", "text": "", "media": None, "fault": None}
    return datasets.Dataset.from_list([empty] * count)
