"""A MIR task of lm-evaluation-harness: `MIRTask`."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import Task
from lm_eval.config.task import TaskConfig
from lm_eval.filters import build_filter_ensemble

from mir_task.documents.document import Document
from mir_task.documents.draw import documents
from mir_task.documents.media import open_media
from mir_task.documents.others import row_of_other_medium
from mir_task.errors import MIRError
from mir_task.harness.scores import aggregation, higher_is_better, metrics_of, of_document
from mir_task.result import MIRResult
from mir_task.settings import Settings
from mir_task.tasks import check_other_keys, mir_keys, with_base

SPLIT = "test"


@dataclass
class Request(Instance):
    """A request of the type `mir_prefill`, which knows the task that it is of."""

    task: Any = field(default=None, repr=False)


class MIRTask(Task):
    """A task of lm-evaluation-harness whose score is MIR.

    Args:
        config: the task's YAML: its name, and the `mir_*` keys of `Settings`.

    Raises:
        MIRError: keys or values that do not fit, or data that cannot be read.
    """

    VERSION = 1
    OUTPUT_TYPE = "mir_prefill"
    MULTIMODAL = True

    def __init__(self, config: dict[str, Any]) -> None:
        config = with_base(config)
        name = config.get("task")
        if not isinstance(name, str):
            raise MIRError(f"a MIR task needs a name, `task: NAME`, which is no {name!r}")
        self.settings = Settings.of(f"task {name}", mir_keys(config))
        check_other_keys(config, {"class", "tag", *(each.name for each in fields(TaskConfig))})
        if self.settings.modality != "image":
            raise MIRError(
                f"task {name}: mir_modality is {self.settings.modality!r}, and hf-multimodal of "
                "lm-evaluation-harness takes images alone; measure it by lmms-eval or mir_task.measure"
            )
        self.keys = self.settings.keys()
        """The task's `mir_*` keys, all of them, for what is written of it."""
        self.metrics = metrics_of(self.settings)
        self.result: MIRResult | None = None
        self.token_counts: dict[str, dict[str, int]] = {}
        """Tokens of each measured document, by its id."""
        self._rows = documents(name, self.settings)
        self._texts = self._rows.remove_columns("media")
        # As the parent's start, which loads a data set of the harness.
        self._training_docs = self._fewshot_docs = self._instances = None
        self._filters = [build_filter_ensemble("none", [["take_first", None]])]
        metadata = {**(config.get("metadata") or {}), **self.keys, "version": self.VERSION}
        self._config = TaskConfig(
            task=name,
            task_alias=config.get("task_alias"),
            test_split=SPLIT,
            num_fewshot=0,
            output_type=self.OUTPUT_TYPE,
            metadata=metadata,
        )

    @property
    def name(self) -> str:
        """Under which the harness has the task."""
        return str(self.config.task)

    def has_training_docs(self) -> bool:
        """No: nothing is learned of them."""
        return False

    def has_validation_docs(self) -> bool:
        """No."""
        return False

    def has_test_docs(self) -> bool:
        """Yes."""
        return True

    def test_docs(self) -> Any:
        """Documents without their media."""
        return self._texts

    def doc_to_text(self, doc: dict[str, Any]) -> str:
        """The document's text."""
        return str(doc["text"])

    def doc_to_target(self, doc: dict[str, Any]) -> str:
        """Empty: MIR has no reference answer."""
        return ""

    def fewshot_context(self, doc: dict[str, Any], *args: Any, **kwargs: Any) -> str:
        """The document's text alone, whatever the run says of few-shot examples and templates."""
        return self.doc_to_text(doc)

    def build_all_requests(
        self, *, limit: int | None = None, samples: Any = None, rank: int = 0, **options: Any
    ) -> None:
        """Build the requests of a run; its cache of them goes by the task's name alone, so it is unused.

        Raises:
            MIRError: this process would have no document.
        """
        self.result, self.token_counts = None, {}
        count = len(samples) if samples else min(limit or len(self._rows), len(self._rows))
        if rank >= count:
            raise MIRError(
                f"{self.name}: process {rank} has none of the {count} documents; start at most as many "
                "processes as there are documents, or raise --limit"
            )
        options |= {"limit": limit, "samples": samples, "rank": rank}
        super().build_all_requests(**{**options, "cache_requests": False})

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> Request:
        """One request of the type `mir_prefill`."""
        return Request(self.OUTPUT_TYPE, doc, (ctx, {}), 0, metadata=kwargs["metadata"], task=self)

    def documents(self, requests: list[Request]) -> Iterator[Document]:
        """The documents of a process's requests, each once, in their order."""
        # Not by the harness's numbers, which count what --samples chose.
        rows = {name: row for row, name in enumerate(self._texts["id"])}
        for doc_id in sorted({rows[request.doc["id"]] for request in requests}):
            values = self._rows[doc_id]
            gains = self.settings.measures_gain
            other = row_of_other_medium(self._rows, doc_id, self.settings.seed) if gains else None
            yield Document(
                *(values["id"], doc_id, values["text"], self._medium(doc_id), self.name, SPLIT),
                fault=values["fault"],
                to_other_media=None if other is None else self._medium(other),
            )

    def _medium(self, doc_id: int) -> Any:
        return lambda row: [open_media(self._rows[doc_id]["media"], self.settings.modality)]

    def answer(self, doc: dict[str, Any]) -> str:
        """Token counts of one document, for the harness's samples."""
        return json.dumps(self.token_counts.get(doc["id"], {}))

    def process_results(self, doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
        """The document's token counts, which are not averaged."""
        return of_document(self.metrics, self.token_counts.get(doc["id"], {}))

    def aggregation(self) -> dict[str, Any]:
        """The task's result, which `mir_prefill` has left here; N/A where it could not be measured."""
        return aggregation(self.metrics, self.result)

    def higher_is_better(self) -> dict[str, bool]:
        """Lower is better, but for caption gain."""
        return higher_is_better(self.metrics)
