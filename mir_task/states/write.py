"""A folder of hidden states from whatever runs the model: `write_states`."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from mir_task.errors import MIRError
from mir_task.files import write_json, written_whole
from mir_task.states.layout import (
    DOCUMENTS,
    DTYPES,
    MANIFEST,
    NORM,
    NUMBERING,
    Manifest,
    check_norm,
    faults,
    file_name,
    is_input,
)
from mir_task.states.norm import FinalNorm


class DocumentStates(NamedTuple):
    """Hidden states of one document's sequence: L positions, without padding."""

    id: str
    token_ids: Tensor
    """int [L], placeholders expanded as the decoder received them."""
    layers: Mapping[int, Tensor]
    """[L, d] of the decoder layers 1 to K, and of its input, 0, where it is there."""
    vision_mask: Tensor | None = None
    """bool [L]: positions of the modality; None where `vision_token_ids` tell them."""
    media_mask: Tensor | None = None
    """bool [L]: positions of media of other kinds, if there are any."""
    row: int | None = None
    """Position in the draw, by which groups of the standard error go; the order of ids if not given."""
    text: str = ""
    """What the sequence holds after its media, for a reader of the report."""


def write_states(
    folder: str | Path,
    documents: Iterable[DocumentStates],
    *,
    model: str,
    last_layer: str,
    norm: FinalNorm | None = None,
    fingerprint: str | None = None,
    **manifest: Any,
) -> Path:
    """Write hidden states for `from_states` and `mir-task states`.

    Documents are written as they come; the manifest is last, so a folder without one is not whole.
    Several processes or machines write a folder each, which are measured together.

    Args:
        folder: new or empty.
        documents: of one model, read one at a time; a generator does.
        model: path or id of the checkpoint.
        last_layer: "after_norm" where the states of layer K are those after the decoder's final norm, as
            the last of `output_hidden_states` of transformers are, or "before_norm".
        norm: the final norm, for "before_norm".
        fingerprint: of the checkpoint; a digest of the manifest and the norm if not given, which does
            not tell two checkpoints of one name.
        manifest: other fields of `Manifest`, such as `vision_token_ids`, `modality`, `placement`,
            `task`, `model_class`, `engine`. Layers, dimensions and dtype are those of the documents.

    Returns:
        Path of the manifest.

    Raises:
        MIRError: a document that does not fit the others, by its id, or a field that does not fit.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise MIRError(
            f"{folder} is not empty; write hidden states of each model to a folder of their own"
        )
    head: Manifest | None = None
    ids: list[str] = []
    for document in documents:
        own = _of_document(document)
        if head is None:
            if norm is not None:
                check_norm(norm, own["hidden_size"], "write_states")
            fields = {**manifest, **own, "norm": norm and norm.how}
            head = _manifest(model=model, last_layer=last_layer, fingerprint=fingerprint, **fields)
            fingerprint = fingerprint or head.digest(norm)
            head = head.model_copy(update={"fingerprint": fingerprint})
        if others := [f"{key} {value!r}" for key, value in own.items() if getattr(head, key) != value]:
            first = ", ".join(f"{key} {getattr(head, key)!r}" for key in own)
            raise MIRError(
                f"document {document.id!r} has {', '.join(others)}; the first, {ids[0]!r}, has {first}"
            )
        if document.id in ids:
            raise MIRError(f"document {document.id!r} came before; each is written once")
        if document.vision_mask is None and not head.vision_token_ids:
            raise MIRError(f"document {document.id!r} has no vision_mask; give it, or vision_token_ids")
        _write(folder / DOCUMENTS / file_name(document.id), document, str(fingerprint))
        ids.append(document.id)
    if head is None:
        raise MIRError("write_states was given no document")
    if norm is not None:
        bias = {} if norm.bias is None else {"bias": norm.bias.detach().cpu().contiguous()}
        with written_whole(folder / NORM) as partial:
            save_file({"weight": norm.weight.detach().cpu().contiguous(), **bias}, partial)
    listed = head.model_copy(update={"documents": tuple(ids)})
    return write_json(folder / MANIFEST, listed.model_dump(mode="json", exclude_none=True))


def _manifest(**fields: Any) -> Manifest:
    try:
        return Manifest(**fields)
    except ValidationError as error:
        raise MIRError(f"write_states: {faults(error)}") from None


def _of_document(document: DocumentStates) -> dict[str, Any]:
    """What a document tells of its model.

    Raises:
        MIRError: its tensors do not fit each other.
    """

    def refuse(why: str) -> MIRError:
        return MIRError(f"document {document.id!r}: {why}")

    if not isinstance(document.id, str) or not document.id:
        raise refuse("its id has to be a text, and not an empty one")
    numbers = sorted(document.layers)
    if not numbers or numbers != list(range(numbers[0], numbers[-1] + 1)) or numbers[0] not in (0, 1):
        raise refuse(f"its layers are {numbers}; all of 1 to K are needed, and 0 may be there")
    if numbers[-1] < 1:
        raise refuse("it has no decoder layer, only its input")
    length = len(document.token_ids)
    first = document.layers[numbers[-1]]
    for number in numbers:
        states = document.layers[number]
        if states.dim() != 2 or len(states) != length:
            raise refuse(
                f"layer {number} has shape {list(states.shape)}, not [L, d] with the {length} positions "
                "of its token_ids"
            )
        if states.shape != first.shape or states.dtype != first.dtype:
            raise refuse(
                f"layer {number} is {list(states.shape)} of {states.dtype}, layer {numbers[-1]} "
                f"{list(first.shape)} of {first.dtype}"
            )
    if is_input(document.layers[1], document.token_ids):
        raise refuse(NUMBERING)
    for name in ("vision_mask", "media_mask"):
        mask = getattr(document, name)
        if mask is not None and (mask.dtype != torch.bool or list(mask.shape) != [length]):
            raise refuse(f"{name} is {list(mask.shape)} of {mask.dtype}, not [{length}] of torch.bool")
    dtype = str(first.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise refuse(f"its hidden states are {dtype}; {', '.join(DTYPES)} can be measured")
    return {
        "layers": numbers[-1],
        "input_layer": numbers[0] == 0,
        "hidden_size": first.shape[1],
        "dtype": dtype,
    }


def _write(path: Path, document: DocumentStates, fingerprint: str) -> None:
    tensors = {f"layer.{number}": states for number, states in document.layers.items()}
    tensors["token_ids"] = document.token_ids
    masks = {"vision_mask": document.vision_mask, "media_mask": document.media_mask}
    tensors |= {name: mask for name, mask in masks.items() if mask is not None}
    metadata = {"fingerprint": fingerprint, "text": document.text}
    if document.row is not None:
        metadata["row"] = str(document.row)
    # Views of one tensor are stored each by itself.
    own = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    with written_whole(path) as partial:
        save_file(own, partial, metadata)
