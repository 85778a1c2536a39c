"""MIR of a model, one document at a time, in bounded memory: `MIRMeter`."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mir_task.errors import MIRError
from mir_task.memory import GIB, free
from mir_task.metric import check_outlier_rule, check_rows, token_norms
from mir_task.result import MeasuredLayer, MIRResult
from mir_task.statistics.finish import Alone, Bar, Options, distances, groups_to_leave_out, learn
from mir_task.statistics.layers import (
    MODALITIES,
    KnownLayer,
    LayerRows,
    LayerSums,
    TokensOfDocument,
)
from mir_task.statistics.sample import Entering, SampleChoice
from mir_task.statistics.tokens import Pieces

DocumentId = str | int


class MIRMeter:
    """MIR of a model, one document at a time, in bounded memory.

    Documents may come in any order and on any number of processes: `merge` joins meters, and `compute`
    gives the same figure for the same documents, up to rounding. Rows are copied, and stay on the device
    where each layer's first ones come.

    Rows of all layers are kept while `memory` allows. Beyond it those of the highest layers go, and the
    documents have to be counted once more: where `needs_second_pass`, fill the meter that `second_pass`
    returns with the same documents and `compute` from that one. Of rows that are kept the value is
    exact; of others it is with the rule "drop", and with "replace" medians come from counts, which moves
    MIR by less than 1e-4.

    Args:
        outliers: `"replace"` or `"drop"`, as in `modality_integration_rate`.
        groups: number of document groups of the delete-a-group jackknife that gives `mir_stderr`;
            0 for none.
        dtype: of the covariances when the root is taken; None for float64, or on accelerators that
            hardly multiply float64 for float32 where that is precise enough.
        memory: GiB for rows on each device, or by device; half of what is free when the first document
            comes if None.
        numbers: 1-based numbers of the decoder layers whose rows `update` is given; all, from the
            first, when None.
        known: what a first pass over the same documents found, by layer number: rows of these layers
            are added up and not kept, and others are not counted.
        sample_rows: raw rows of each modality and layer that come with a result, 1024 at most.
        extras: `"cka"`, `"mmd"` and `"entropy_rank"`, figures of a layer that take more than its means
            and covariances.

    Raises:
        MIRError: an argument that does not fit.
    """

    def __init__(
        self,
        *,
        outliers: str = "replace",
        groups: int = 0,
        dtype: torch.dtype | None = None,
        memory: float | Mapping[torch.device, float] | None = None,
        numbers: Sequence[int] | None = None,
        known: Mapping[int, KnownLayer] | None = None,
        sample_rows: int = 0,
        extras: Collection[str] = (),
    ) -> None:
        check_outlier_rule(outliers)
        if groups < 0 or groups == 1:
            raise MIRError(f"groups must be 0 (no standard error) or at least 2, got {groups}")
        self.options = Options(outliers, groups, dtype, sample_rows, tuple(extras))
        self.memory = memory
        self.numbers = None if numbers is None else tuple(numbers)
        self.known = dict(known or {})
        self.documents: dict[DocumentId, int] = {}
        """Group of each document counted."""
        self.layers: dict[int, LayerRows | LayerSums] = {}
        """By layer number."""
        self.choices = [SampleChoice() for _ in MODALITIES]
        """Of the samples of vision and of text tokens."""
        self.measured: dict[int, MeasuredLayer] = {}
        """Layers that a first pass has measured already."""
        self._expected: frozenset[DocumentId] = frozenset()
        """Documents of the first pass, where this is a second one."""
        self._learned: tuple[dict[int, KnownLayer], dict[int, MeasuredLayer]] | None = None
        """Of a first pass, once a second one was asked for."""
        self._dimensions: list[int] = []
        self._room: dict[torch.device, float] = {}
        self._norms = Pieces()

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.documents)

    def __contains__(self, document_id: DocumentId) -> bool:
        """Whether this document was counted."""
        return document_id in self.documents

    def update(
        self,
        document_id: DocumentId,
        vision_rows: Sequence[Tensor],
        text_rows: Sequence[Tensor],
        *,
        group: int | None = None,
    ) -> None:
        """Count one document, or nothing of it where it raises.

        Args:
            document_id: counted once; a second time is an error.
            vision_rows: one tensor [vision tokens, d] a decoder layer.
            text_rows: one tensor [text tokens, d] a decoder layer.
            group: position of the document in the draw; its group is this modulo `groups`. The number
                of documents counted before it when None.

        Raises:
            MIRError: the document was counted before, its rows hold NaN or infinity (document and
                layer are named), its layers have different numbers of tokens, or they do not fit those
                counted so far.
        """
        self._check_open()
        rows = [[part.detach() for part in of_modality] for of_modality in (vision_rows, text_rows)]
        numbers = self.numbers or tuple(range(1, len(rows[0]) + 1))
        try:
            check_rows(*rows)
            _check_equal(numbers, rows)
            by_layer = (dict(zip(numbers, parts, strict=False)) for parts in rows)
            norms = self._kept_norms(token_norms(dict(zip(MODALITIES, by_layer, strict=True))))
        except MIRError as error:
            raise MIRError(f"document {document_id!r}: {error}") from None
        if document_id in self.documents:
            raise _counted_before(document_id)
        self._check_dimensions(document_id, [part.shape[1] for part in rows[0]])
        counted = {
            number: list(zip(of_layer, of_norms, strict=True))
            for number, of_layer, of_norms in zip(
                numbers, zip(*rows, strict=True), zip(*norms, strict=True), strict=True
            )
            if not self.known or number in self.known
        }
        self._make_room({number: [part for part, _ in parts] for number, parts in counted.items()})
        copies = {
            number: [(self._layer(number).copied(n, part), own) for n, (part, own) in enumerate(parts)]
            for number, parts in counted.items()
        }
        group = (len(self.documents) if group is None else group) % max(self.options.groups, 1)
        entering = Entering(document_id, len(self.documents), self.choices, [len(r[0]) for r in rows])
        self._dimensions = [part.shape[1] for part in rows[0]]
        self.documents[document_id] = group
        for number, parts in copies.items():
            tokens = [
                TokensOfDocument(part, own.to(part.device), *places)
                for (part, own), places in zip(parts, entering.on(parts[0][0].device), strict=True)
            ]
            self._layer(number).add(tokens, group, means="cka" in self.options.extras)

    def merge(self, other: "MIRMeter") -> None:
        """Count all documents of another meter of the same model and settings.

        Raises:
            MIRError: the settings or what is known differ, or a document is in both.
        """
        self._check_open()
        other._check_open()
        mine, theirs = ((meter.options, meter.numbers, sorted(meter.known)) for meter in (self, other))
        if mine != theirs:
            raise MIRError(f"meters of different settings cannot be merged: {mine} and {theirs}")
        if any(self.known[n].bounds != other.known[n].bounds for n in self.known):
            raise MIRError("meters of second passes after different first passes cannot be merged")
        for document_id in other.documents:
            if document_id in self.documents:
                raise _counted_before(document_id)
        if not other.documents:
            return
        self._dimensions = self._dimensions or other._dimensions
        if other._dimensions != self._dimensions:
            raise MIRError("meters of different models cannot be merged")
        before = len(self.documents)
        self.documents |= other.documents
        self.measured = self.measured | other.measured
        self._expected = self._expected or other._expected
        self._forget_rows([n for n, layer in other.layers.items() if _is_sampled(layer)])
        entering = []
        for own, more in zip(self.choices, other.choices, strict=True):
            filled = np.flatnonzero(np.isfinite(more.priorities))
            slots, chosen = own.offer(
                more.priorities[filled], before + more.documents[filled], more.positions[filled]
            )
            entering.append((slots, torch.from_numpy(filled)[chosen]))
        for number, layer in other.layers.items():
            mine_of_layer = self._layer(number)
            if isinstance(mine_of_layer, LayerSums):
                assert isinstance(layer, LayerSums)
                mine_of_layer.merge(layer)
                continue
            assert isinstance(layer, LayerRows)
            if _is_sampled(mine_of_layer) and not _is_sampled(layer):
                layer = layer.sampled(other.choices)
            mine_of_layer.merge(layer, entering)
        self._make_room({})

    def kept(self) -> list[int]:
        """Numbers of the layers whose rows are kept."""
        return sorted(
            n for n, layer in self.layers.items() if isinstance(layer, LayerRows) and layer.kept
        )

    def only(self, documents: Collection[DocumentId], numbers: Collection[int]) -> "MIRMeter":
        """A meter of some of the documents and of layers that are `kept`, which shares their rows."""
        part = MIRMeter(memory=self.memory, numbers=sorted(numbers), **self.options._asdict())
        ids = list(self.documents)
        places = [n for n, document_id in enumerate(ids) if document_id in documents]
        part.documents = {ids[place]: self.documents[ids[place]] for place in places}
        layers = {
            number: layer.only(places)
            for number, layer in _of_rows(self.layers).items()
            if number in numbers
        }
        part.layers |= layers
        part._dimensions = self._dimensions[: len(layers)]
        counts = [
            [len(norms) for norms in tokens.norms] for tokens in next(iter(layers.values())).modalities
        ]
        for number, (document_id, *of_document) in enumerate(zip(part.documents, *counts, strict=True)):
            Entering(document_id, number, part.choices, of_document)
        return part

    def needs_second_pass(self) -> bool:
        """Whether there was no room for rows of some layers, so that the documents must run again."""
        return self._learned is not None or any(_is_sampled(layer) for layer in self.layers.values())

    def second_pass(self) -> "MIRMeter":
        """An empty meter for the same documents again, which knows what this one tells of them.

        The documents counted here, on all processes together, must be all there are: none can be counted
        any more. Layers whose rows were kept are measured now, and their rows are forgotten.
        """
        if self._learned is None:
            known = learn(_of_rows(self.layers), self.choices, self.options, Alone())
            kept = {number: self.take(number) for number in self.kept()}
            done = distances(kept, known, self._left_out(known), self.options, Alone())
            self._learned = {number: known[number] for number in self.layers}, self.measured | done
            self.layers = {}
        known, measured = self._learned
        again = MIRMeter(
            memory=self.memory,
            numbers=self.numbers or tuple(range(1, len(self._dimensions) + 1)),
            known=known,
            **self.options._asdict(),
        )
        again.measured, again._expected = measured, frozenset(self.documents)
        return again

    def compute(self, progress: Bar = lambda layers: layers) -> MIRResult:
        """MIR of all documents counted, with its standard error where groups were asked for.

        Outliers are those among all documents, in the jackknife too. No standard error is given while
        a group is empty, or where too few tokens are left without one.

        Args:
            progress: wraps the numbers of the layers, for a bar.

        Raises:
            MIRError: no documents, rows that were not kept, or as `modality_integration_rate`.
        """
        if not self.documents:
            raise MIRError("no documents were counted, so there is nothing to measure")
        if self.needs_second_pass():
            raise MIRError(
                "there was no room to keep the rows of all layers: count the documents once more by the "
                "meter that second_pass() returns, or raise memory (GiB)"
            )
        if differing := self._expected and self._expected ^ self.documents.keys():
            raise MIRError(
                f"the second pass must count the documents of the first; {len(differing)} were counted "
                f"in one of them only, such as {min(differing, key=str)!r}"
            )
        known = self.known or learn(_of_rows(self.layers), self.choices, self.options, Alone())
        left_out = self._left_out(known)
        measured = distances(dict(self.layers), known, left_out, self.options, Alone(), progress)
        return MIRResult.of_layers((self.measured | measured).values(), self.options.outliers)

    def take(self, number: int) -> LayerRows | LayerSums:
        """The statistics of the layer of that number, which this meter then has no more."""
        self._layer(number)
        return self.layers.pop(number)

    def _left_out(self, known: Mapping[int, KnownLayer]) -> list[int]:
        groups = groups_to_leave_out(known.values(), self.options.groups)
        return groups if isinstance(groups, list) else []

    def _check_open(self) -> None:
        if self._learned is not None:
            raise MIRError("a second pass has been asked for, so this meter counts no more documents")

    def _check_dimensions(self, document_id: DocumentId, dimensions: list[int]) -> None:
        if self.numbers is not None and len(dimensions) != len(self.numbers):
            raise MIRError(
                f"document {document_id!r} has rows of {len(dimensions)} layers, the meter counts "
                f"{len(self.numbers)}"
            )
        if self._dimensions and dimensions != self._dimensions:
            raise MIRError(
                f"document {document_id!r} has {len(dimensions)} layers of {dimensions[0]} dimensions, "
                f"those before have {len(self._dimensions)} of {self._dimensions[0]}: one meter counts "
                "one model"
            )

    def _layer(self, number: int) -> LayerRows | LayerSums:
        """Of that number; an empty one while no document was counted."""
        if number not in self.layers:
            known = self.known.get(number)
            self.layers[number] = (
                LayerRows()
                if known is None
                else LayerSums(known, self.options.outliers, max(self.options.groups, 1))
            )
        return self.layers[number]

    def _kept_norms(self, norms: Mapping[str, Sequence[Tensor]]) -> list[list[Tensor]]:
        """Norms of all layers of each modality, in one piece of memory where they are on one device."""
        kept = []
        for parts in norms.values():
            if len({part.device for part in parts}) == 1:
                together = self._norms.copied(torch.cat(list(parts)), parts[0].device)
                parts = torch.split(together, [len(part) for part in parts])
            kept.append(list(parts))
        return kept

    def _make_room(self, coming: Mapping[int, Sequence[Tensor]]) -> None:
        """Forget rows of the highest layers on each device, so that those that come have room."""
        needed: dict[torch.device, dict[int, int]] = {}
        for number in sorted({*coming, *self.layers}):
            layer, rows = self._layer(number), coming.get(number, ())
            if not isinstance(layer, LayerRows):
                continue
            device = layer.device or next((part.device for part in rows), None)
            if device is not None:
                more = sum(part.nbytes for part in rows) if layer.kept else 0
                needed.setdefault(device, {})[number] = layer.nbytes + more
        for device, bytes_of in needed.items():
            if device not in self._room:
                self._room[device] = self._room_on(device)
            for number in sorted(bytes_of, reverse=True):
                if sum(bytes_of.values()) <= self._room[device]:
                    break
                self._forget_rows([number])
                bytes_of[number] = _of_rows(self.layers)[number].nbytes

    def _room_on(self, device: torch.device) -> float:
        """Bytes for rows on a device."""
        if self.memory is None:
            return free(device) / 2
        return (self.memory[device] if isinstance(self.memory, Mapping) else self.memory) * GIB

    def _forget_rows(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            layer = self._layer(number)
            if isinstance(layer, LayerRows) and layer.kept:
                layer.forget_rows(self.choices)


def _check_equal(numbers: Sequence[int], rows: Sequence[Sequence[Tensor]]) -> None:
    for modality, parts in zip(MODALITIES, rows, strict=True):
        counts = [len(part) for part in parts]
        for number, count in zip(numbers, counts, strict=False):
            if count != counts[0]:
                raise MIRError(
                    f"layer {number} has {count} {modality} tokens, layer {numbers[0]} has {counts[0]}: "
                    "every layer must have the same tokens"
                )


def _counted_before(document_id: DocumentId) -> MIRError:
    return MIRError(f"document {document_id!r} was counted before; count each document once")


def _is_sampled(layer: LayerRows | LayerSums) -> bool:
    """Whether a first pass keeps no more than samples of a layer."""
    return isinstance(layer, LayerRows) and not layer.kept


def _of_rows(layers: Mapping[int, LayerRows | LayerSums]) -> dict[int, LayerRows]:
    return {number: layer for number, layer in layers.items() if isinstance(layer, LayerRows)}
