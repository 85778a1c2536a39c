"""Where the hidden states of documents come from: `StateSource`."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from mir_task.capture.prefill import Prefill
from mir_task.documents.document import Document
from mir_task.measuring.plan import Shape
from mir_task.measuring.seen import Outcome


class StateSource(Protocol):
    """A model that runs documents (`Reader`), or files of what one gave (`mir_task.states`)."""

    notes: list[str]
    """What a reader of the value should know of the placement."""

    @property
    def modality(self) -> str:
        """Of the documents."""

    @property
    def model_class(self) -> str:
        """Of the model, for messages."""

    @property
    def tokenizer(self) -> Any:
        """Of the model; of no use where there are no losses."""

    @property
    def layer_devices(self) -> Mapping[int, torch.device]:
        """On which the rows of each layer come, by its number; 0 of the decoder's input."""

    @property
    def shape(self) -> Shape:
        """Of the hidden states."""

    @property
    def batch_size(self) -> int:
        """Documents to run at once."""

    @property
    def context(self) -> int | None:
        """Positions that the model was made for; None where it is not known."""

    @property
    def kept_tokens(self) -> int | None:
        """Positions after which the model's own code cuts a sequence; None where it is not known."""

    @property
    def placeholders(self) -> Sequence[str]:
        """What stands for a medium in the model's prompts."""

    def text_tokens(self, text: str) -> int:
        """Tokens of a text alone."""

    def capturing(
        self, layers: Mapping[int, torch.device] | None = None, *, losses: bool = False
    ) -> AbstractContextManager[None]:
        """Inside, documents may run, for the rows of some layers."""

    def without_rows(self) -> AbstractContextManager[None]:
        """Within `capturing`: what is seen has positions and losses, and no rows."""

    def run(self, batch: list[Document], probe: Document | None) -> Iterable[tuple[Document, Outcome]]:
        """Each document of a batch with its `Outcome`; `probe` is another document."""

    def facts(self, prefill: Prefill) -> dict[str, Any]:
        """What the side file says of the model; the same for every document and process."""
