"""Stored hidden states in the place of a model that runs: `StoredStates`."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mir_task.capture.prefill import Prefill
from mir_task.documents.document import Document
from mir_task.errors import MIRError
from mir_task.measuring.plan import Shape
from mir_task.measuring.prompts import Arrival
from mir_task.measuring.seen import Outcome, Rejected, Seen
from mir_task.settings import TOKENS
from mir_task.states.document import MixedModels, StoredDocument, open_document
from mir_task.states.layout import DTYPES, Stored

_ARRIVED = Arrival(0, 0, 0, "")


class StoredStates:
    """Gives what a model saw of documents from their files; as `measuring.source.StateSource`.

    Args:
        stored: what is on disk.
        device: on which rows live.
    """

    tokenizer = None
    placeholders: tuple[str, ...] = ()
    context: int | None = None
    kept_tokens: int | None = None
    batch_size = 1

    def __init__(self, stored: Stored, device: torch.device) -> None:
        self._stored, self._device = stored, device
        self._layers: Mapping[int, torch.device] = {}
        self.notes: list[str] = []
        self.modality: str = stored.manifest.modality

    @property
    def model_class(self) -> str:
        """Of the model that wrote the states."""
        return self._stored.manifest.model_class

    @property
    def layer_devices(self) -> dict[int, torch.device]:
        """Where the rows of each layer live, by its number."""
        return dict.fromkeys(self._stored.manifest.numbers, self._device)

    @property
    def shape(self) -> Shape:
        """Of the hidden states."""
        manifest = self._stored.manifest
        return Shape(manifest.hidden_size, DTYPES[manifest.dtype].itemsize)

    def text_tokens(self, text: str) -> int:
        """None: texts are not there, and nothing has to fit any more."""
        return 0

    @contextlib.contextmanager
    def capturing(
        self, layers: Mapping[int, torch.device] | None = None, *, losses: bool = False
    ) -> Iterator[None]:
        """Inside, `run` gives the rows of these layers; there are no losses."""
        self._layers = self.layer_devices if layers is None else layers
        yield

    @contextlib.contextmanager
    def without_rows(self) -> Iterator[None]:
        """Within `capturing`: what is seen has no rows."""
        before, self._layers = self._layers, {}
        try:
            yield
        finally:
            self._layers = before

    def facts(self, prefill: Prefill) -> dict[str, object]:
        """What the side file says of the model."""
        manifest = self._stored.manifest
        return {
            "model_class": manifest.model_class,
            "decoder": "",
            "hidden_size": manifest.hidden_size,
            "hidden_dtype": manifest.dtype,
            "placement": manifest.placement,
        }

    def run(self, batch: list[Document], probe: Document | None) -> Iterator[tuple[Document, Outcome]]:
        """Each document with what its file holds, or why it cannot be measured.

        Raises:
            MIRError: a file is of another model, whatever is done with documents that fail.
        """
        for document in batch:
            yield document, self._outcome(self._stored.files[document.id])

    def _outcome(self, path: Path) -> Outcome:
        try:
            with open_document(path, self._stored) as stored:
                return self._seen(stored)
        except MixedModels:
            raise
        except MIRError as error:
            return Rejected(str(error), own=True)

    def _seen(self, stored: StoredDocument) -> Outcome:
        vision, text = stored.vision, _after_the_last(stored.media)
        tokens = TOKENS[self.modality]
        if not vision.any():
            ids = list(self._stored.manifest.vision_token_ids)
            how = (
                "its vision_mask is nowhere true"
                if stored.rule == "mask"
                else f"none of its token ids is of the vision_token_ids {ids}"
            )
            return Rejected(f"it has no {tokens} tokens: {how}", own=True)
        if not text.any():
            return Rejected(
                f"it has no text tokens: none of its {stored.length} positions stands after the last "
                f"{tokens} token; the document's text has to follow its {self.modality}",
                own=True,
            )
        positions = [mask.nonzero().squeeze(1) for mask in (vision, text)]
        layers = [
            [rows.to(device) for rows in stored.rows(number, positions)]
            for number, device in self._layers.items()
        ]
        none = torch.zeros_like(vision)
        prefill = Prefill(
            token_ids=stored.token_ids,
            real=torch.ones_like(vision),
            vision=vision,
            text=text,
            markers=none,
            discrete=none,
            vision_rule=stored.rule,
            vision_rows=tuple(rows for rows, _ in layers),
            text_rows=tuple(rows for _, rows in layers),
        )
        return Seen(prefill, stored.text, _ARRIVED, (1, 0))


def _after_the_last(media: Tensor) -> Tensor:
    """True behind the last position of any medium; of none where there is no medium."""
    positions = torch.arange(len(media))
    return positions > (int(positions[media].max()) if media.any() else len(media))
