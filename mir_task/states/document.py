"""One document's file of hidden states: checked by its header, then read layer by layer."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mir_task.errors import MIRError
from mir_task.states.layout import (
    DTYPES,
    HEADER_DTYPES,
    NUMBERING,
    Manifest,
    Stored,
    is_input,
    opened,
)

_INTEGERS = {"I64", "I32", "U32", "U16", "I16"}
_MASKS = {"BOOL", "U8"}


class MixedModels(MIRError):
    """A file is of another model than the manifest; never left out with a warning."""


class StoredDocument:
    """An open file of one document.

    Attributes:
        length: L, positions of the sequence.
        token_ids: int64 [L].
        vision: bool [L], of the modality.
        media: bool [L], of any medium.
        rule: which rule found them: "mask" or "token_ids".
        text: what its writer says that the sequence holds after the media.
        row: position in the draw, if its writer says.
    """

    def __init__(self, file: Any, path: Path, stored: Stored) -> None:
        self._file, self._path, self._stored = file, path, stored
        metadata = file.metadata() or {}
        self._check_model(metadata)
        self.text = metadata.get("text", "")
        self.row = self._row(metadata.get("row"))
        self.length = self._check_states()
        self.token_ids = self._positions("token_ids", _INTEGERS).long()
        self.rule, self.vision, self.media = self._media()

    def rows(self, number: int, positions: Sequence[Tensor]) -> list[Tensor]:
        """States of one layer at some sets of positions [n] each: [n, d], after the final norm."""
        if self._stored.layout == "vllm":
            place = number - self._stored.manifest.numbers.start
            states = self._file.get_slice("hidden_states")[:, place : place + 1, :].squeeze(1)
        else:
            states = self._file.get_tensor(f"layer.{number}")
        if number == 1 and is_input(states, self.token_ids):
            raise MixedModels(f"{self._path.name}: {NUMBERING}; of vLLM's layer ids 1, not 0")
        found = [states[of] for of in positions]
        norm = self._stored.norm
        return found if norm is None or number != self._manifest.layers else [norm(of) for of in found]

    @property
    def _manifest(self) -> Manifest:
        return self._stored.manifest

    def _check_model(self, metadata: dict[str, str]) -> None:
        wanted, found = self._manifest.fingerprint, metadata.get("fingerprint")
        if wanted != found and self._stored.layout == "mir-task":
            raise MixedModels(
                f"{self._path.name} has fingerprint {found!r}, and the manifest {wanted!r}: hidden "
                "states of different models are not measured together"
            )

    def _row(self, value: str | None) -> int | None:
        if value is not None and not value.isdecimal():
            raise MIRError(f"its metadata has row {value!r}, which is no number from 0")
        return None if value is None else int(value)

    def _check_states(self) -> int:
        """The length of the sequence, if all layers are there and of one shape."""
        manifest, keys = self._manifest, set(self._file.keys())
        if self._stored.layout == "vllm":
            shape = self._states_shape("hidden_states", keys, 3)
            if shape[1] != len(manifest.numbers):
                raise MixedModels(
                    f"{self._path.name} has states of {shape[1]} layers, the first file "
                    f"{len(manifest.numbers)}: hidden states of one call of vLLM have the same layers"
                )
            return shape[0]
        layers = {key for key in keys if key.startswith("layer.")}
        if more := sorted(layers - {f"layer.{number}" for number in manifest.numbers}):
            raise MixedModels(
                f"{self._path.name} has {', '.join(more[:3])} beyond the manifest's layers "
                f"{manifest.numbers.start} to {manifest.layers}: it is of another model"
            )
        lengths = {n: self._states_shape(f"layer.{n}", keys, 2)[0] for n in manifest.numbers}
        first = lengths[manifest.layers]
        for number, length in lengths.items():
            if length != first:
                raise MIRError(f"layer {number} has {length} positions, layer {manifest.layers} {first}")
        return first

    def _states_shape(self, key: str, keys: set[str], dimensions: int) -> list[int]:
        manifest = self._manifest
        if key not in keys:
            have = ", ".join(sorted(keys)[:8]) or "nothing"
            raise MIRError(f"it has no tensor {key!r}; it has {have}")
        part = self._file.get_slice(key)
        shape, dtype = part.get_shape(), part.get_dtype()
        if len(shape) != dimensions:
            wanted = "[L, d]" if dimensions == 2 else "[L, layers, d]"
            raise MIRError(f"{key} has shape {shape}, not {wanted}")
        if shape[-1] != manifest.hidden_size:
            raise MixedModels(
                f"{self._path.name}: {key} has {shape[-1]} dimensions, the model {manifest.hidden_size}"
            )
        if (found := HEADER_DTYPES.get(dtype)) is None:
            raise MIRError(f"{key} is of dtype {dtype}; {', '.join(DTYPES)} can be measured")
        if found != manifest.dtype:
            raise MixedModels(
                f"{self._path.name}: {key} is {found}, the model's states {manifest.dtype}"
            )
        return list(shape)

    def _positions(self, key: str, dtypes: set[str]) -> Tensor:
        """A tensor [L] of the file."""
        keys = set(self._file.keys())
        if key not in keys:
            raise MIRError(f"it has no tensor {key!r}; it has {', '.join(sorted(keys)[:8])}")
        part = self._file.get_slice(key)
        shape, dtype = list(part.get_shape()), part.get_dtype()
        if dtype not in dtypes:
            raise MIRError(f"{key} is of dtype {dtype}, not {' or '.join(sorted(dtypes))}")
        if shape != [self.length]:
            raise MIRError(
                f"{key} has shape {shape}, and the hidden states have {self.length} positions"
            )
        tensor: Tensor = self._file.get_tensor(key)
        return tensor

    def _media(self) -> tuple[str, Tensor, Tensor]:
        """By which rule media are found, positions of the modality, and of any."""
        manifest = self._manifest
        keys = set(self._file.keys()) if self._stored.layout == "mir-task" else set()
        by_ids = _among(self.token_ids, manifest.vision_token_ids)
        others = _among(self.token_ids, manifest.media_token_ids)
        if "media_mask" in keys:
            others |= self._positions("media_mask", _MASKS).bool()
        if "vision_mask" not in keys:
            if not manifest.vision_token_ids:
                raise MIRError("it has no vision_mask, and the manifest no vision_token_ids")
            return "token_ids", by_ids, by_ids | others
        mask = self._positions("vision_mask", _MASKS).bool()
        if left_out := int((by_ids & ~mask).sum()):
            raise MIRError(
                f"vision_mask leaves out {left_out} positions whose token ids are of the manifest's "
                f"vision_token_ids {list(manifest.vision_token_ids)}"
            )
        return "mask", mask, mask | others


def _among(ids: Tensor, wanted: Sequence[int]) -> Tensor:
    return torch.isin(ids, torch.tensor(wanted, dtype=torch.int64))


@contextlib.contextmanager
def open_document(path: Path, stored: Stored) -> Iterator[StoredDocument]:
    """A document's file.

    Raises:
        MixedModels: it is of another model.
        MIRError: it cannot be read or lacks something, with the reason.
    """
    with opened(path, "a document's hidden states") as file:
        yield StoredDocument(file, path, stored)
