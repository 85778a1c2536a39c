"""MIR of hidden states on disk: `from_states`, and what `mir-task states` calls."""

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from loguru import logger

from mir_task.documents.document import Document
from mir_task.errors import MIRError
from mir_task.measuring.library import in_keywords, of_keywords
from mir_task.measuring.passes import Measurement, measure_together
from mir_task.measuring.processes import on_every_rank, rank, world_size
from mir_task.result import MIRResult
from mir_task.settings import MeasureSettings
from mir_task.states import vllm
from mir_task.states.document import MixedModels, open_document
from mir_task.states.layout import Manifest, Stored, find
from mir_task.states.source import StoredStates

_OF_A_MODEL = {
    "modality": "stands in the manifest",
    "placement": "stands in the manifest",
    "caption_ppl": "takes logits, which are not stored",
    "caption_gain": "takes logits, which are not stored",
}
"""Settings of `measure` that stored states do not have, and why."""


class Measured(NamedTuple):
    """What was measured of stored hidden states, on all processes together."""

    name: str
    manifest: Manifest
    settings: MeasureSettings
    measurement: Measurement


def from_states(
    folders: str | Path | Sequence[str | Path],
    *,
    checkpoint: str | Path | None = None,
    vision_token_ids: Sequence[int] | None = None,
    name: str | None = None,
    device: str | torch.device | None = None,
    bars: bool = True,
    **settings: Any,
) -> MIRResult:
    """MIR of hidden states that another engine wrote.

    Documents are read one at a time and layer by layer, in as many passes as the memory plan takes.
    Where torch.distributed runs, every process must call it with the same folders; each reads its share
    of the documents, and all return the result of all.

    Args:
        folders: one, or several of one model, such as one of each machine, as `write_states` leaves
            them (docs/states.md).
        checkpoint: folder of the model's checkpoint, for folders that vLLM's
            ExampleHiddenStatesConnector wrote: its configuration tells the layers and the vision tokens,
            its weights the final norm.
        vision_token_ids: placeholders of the vision tokens, for such folders, where the checkpoint's
            configuration does not name them.
        name: of the documents, for progress bars, messages and reports; the manifest's where not given.
        device: on which rows live and distances are computed; the process's own GPU where there
            is one, if not given.
        bars: whether to show progress bars.
        settings: as the keys of a MIR task, without their `mir_`: `outliers`, `groups`, `text_rows`,
            `on_error`, `min_documents`, `extras`, `host_memory`, `accelerator_memory`.

    Raises:
        MIRError: on every process alike: files that are missing, truncated, not finite, of several
            models or without vision or text tokens, by name, or a setting that does not fit.
    """
    measured = measure_states(
        folders,
        checkpoint=checkpoint,
        vision_token_ids=vision_token_ids,
        name=name,
        device=device,
        bars=bars,
        **settings,
    )
    return measured.measurement.result


def measure_states(
    folders: str | Path | Sequence[str | Path],
    *,
    checkpoint: str | Path | None = None,
    vision_token_ids: Sequence[int] | None = None,
    name: str | None = None,
    device: str | torch.device | None = None,
    bars: bool = True,
    **settings: Any,
) -> Measured:
    """As `from_states`, with what a report says beside the result."""
    for key in settings.keys() & _OF_A_MODEL.keys():
        raise MIRError(f"stored hidden states take no {key}={settings[key]!r}: it {_OF_A_MODEL[key]}")
    paths = [Path(p) for p in ([folders] if isinstance(folders, str | Path) else folders)]
    with in_keywords():
        with on_every_rank():
            if checkpoint is not None:
                stored = vllm.find(paths, Path(checkpoint), vision_token_ids)
            elif vision_token_ids is not None:
                raise MIRError("vision_token_ids goes with checkpoint; a manifest has its own")
            else:
                stored = find(paths)
            manifest = stored.manifest
            name = name or manifest.task or "states"
            keys = {**settings, "modality": manifest.modality}
            chosen = MeasureSettings.of(name, keys, prefix="")
            documents = list(_share(stored))
        make = functools.partial(StoredStates, stored, _device(device))
        measured = measure_together(make, documents, chosen, name, bars=bars, words=of_keywords)
    if rank() == 0:
        for warning in measured.log.warnings(measured.result, manifest.modality):
            logger.warning(f"{name}: {of_keywords(warning)}")
    return Measured(name, manifest, chosen, measured)


def _share(stored: Stored) -> Iterator[Document]:
    """This process's documents.

    Their rows, by which groups of the standard error go, are those that their writer gave; else their
    places in the order of ids.

    Raises:
        MixedModels: a file is of another model.
    """
    for place, (name, path) in enumerate(stored.files.items()):
        if place % world_size() != rank():
            continue
        row = place
        try:
            with open_document(path, stored) as document:
                row = place if document.row is None else document.row
        except MixedModels:
            raise
        except MIRError:
            pass  # told where the document is to be measured, by the rule for documents that fail
        yield Document(name, row, "", lambda row: [])


def _device(device: str | torch.device | None) -> torch.device:
    if device is not None:
        try:
            return torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            raise MIRError(f"device {str(device)!r} cannot be used here: {error}") from None
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
