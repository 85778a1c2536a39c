"""MIR of a model, one document at a time, in bounded memory: `MIRMeter`."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from mir_task.errors import MIRError
from mir_task.metric.definition import (
    ComputedLayer,
    as_rows,
    check_dtype,
    check_outlier_rule,
    check_rows,
    result_of_layers,
    token_norms,
)
from mir_task.metric.extras import EXTRAS, need
from mir_task.result import MIRResult
from mir_task.statistics.finish import (
    MODALITIES,
    Bar,
    Layer,
    Options,
    distances,
    groups_to_leave_out,
    learn,
)
from mir_task.statistics.memory import Pieces
from mir_task.statistics.sums import KnownLayer, Sums
from mir_task.statistics.tokens import FirstPass

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
        numbers: 1-based numbers of the decoder layers whose rows `update` is given, and 0 for the
            decoder's input; all, from 1, when None.
        known: what a first pass over the same documents found, by layer number: rows of these layers
            are added up and not kept, and others are not counted.
        sample_rows: raw rows of each modality and layer that come with a result, 1024 at most.
        extras: names of further measures of each layer, of `mir_task.metric.extras.EXTRAS`.

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
        check_dtype(dtype)
        if numbers is not None and len(set(numbers)) < len(numbers):
            raise MIRError(f"numbers must be of different layers, got {list(numbers)}")
        if groups < 0 or groups == 1:
            raise MIRError(f"groups must be 0 (no standard error) or at least 2, got {groups}")
        if unknown := set(extras) - EXTRAS.keys():
            raise MIRError(f"extras must be of {', '.join(EXTRAS)}, got {', '.join(sorted(unknown))}")
        self.options = Options(outliers, groups, dtype, sample_rows, tuple(extras))
        self.numbers = None if numbers is None else tuple(numbers)
        self.known = dict(known or {})
        self.documents: dict[DocumentId, int] = {}
        """Group of each document counted."""
        self.tokens = FirstPass(memory)
        """Of all layers, in a first pass."""
        self.sums: dict[int, list[Sums]] = {n: self._no_sums(of) for n, of in self.known.items()}
        """Of vision and text tokens of each layer known, in a second pass."""
        self.means: dict[int, list[tuple[Tensor, Tensor]]] = {}
        """Mean vision and text rows [d] of each document, by layer, where a measure needs them."""
        self.measured: dict[int, ComputedLayer] = {}
        """Layers that the first pass has measured, where this is a second one."""
        self._first: dict[DocumentId, int] | None = None
        """Group of each document of the first pass, where this is a second one."""
        self._learned: tuple[dict[int, KnownLayer], dict[int, ComputedLayer]] | None = None
        """What a second pass is to know, once one was asked for."""
        self._dimensions: list[int] = []
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
            vision_rows: one tensor, or numpy array, [vision tokens, d] a decoder layer.
            text_rows: one tensor [text tokens, d] a decoder layer.
            group: position of the document in the draw; its group is this modulo `groups`. The number
                of documents counted before it when None, and in a second pass its group of the first.

        Raises:
            MIRError: the document was counted before, or in another group in the first pass, its rows
                hold NaN or infinity (document and layer are named), its layers have different numbers
                of tokens, they do not fit those counted so far, or there is no token of a modality and
                an extra takes each document's mean.
        """
        self._check_open([document_id])
        try:
            rows = [
                as_rows(of_modality, modality)
                for modality, of_modality in zip(MODALITIES, (vision_rows, text_rows), strict=True)
            ]
            numbers = self.numbers or tuple(range(1, len(rows[0]) + 1))
            check_rows(*rows)
            self._check_layers(numbers, rows)
            by_layer = (dict(zip(numbers, parts, strict=True)) for parts in rows)
            norms = token_norms(dict(zip(MODALITIES, by_layer, strict=True)))
            group = self._group(document_id, group)
        except MIRError as error:
            raise MIRError(f"document {document_id!r}: {error}") from None
        self._dimensions = [part.shape[1] for part in rows[0]]
        kept = map(self._norms.together, norms.values())
        pairs = zip(zip(*rows, strict=True), zip(*kept, strict=True), strict=True)
        layers = dict(zip(numbers, pairs, strict=True))
        if not self.known:
            self.tokens.add(document_id, layers)
        for number, of_layer in self.sums.items():
            for sums, part, own in zip(of_layer, *layers[number], strict=True):
                sums.add(part, own, group)
        for number, (pair, _) in layers.items() if need(self.options.extras, "means") else ():
            vision, text = (part.float().mean(0) for part in pair)
            self.means.setdefault(number, []).append((vision, text))
        self.documents[document_id] = group

    def merge(self, other: "MIRMeter") -> None:
        """Count all documents of another meter of the same model and settings; rows are shared.

        Raises:
            MIRError: the settings or what is known differ, or a document is in both.
        """
        other._check_open(())
        self._check_open(other.documents)
        mine, theirs = ((m.options, m.numbers, sorted(m.known)) for m in (self, other))
        if mine != theirs:
            raise MIRError(f"meters of different settings cannot be merged: {mine} and {theirs}")
        pairs = ((self.known[n][m], other.known[n][m]) for n in self.known for m in range(2))
        if any(own.bounds != more.bounds for own, more in pairs):
            raise MIRError("meters of second passes after different first passes cannot be merged")
        if self._dimensions and other._dimensions not in ([], self._dimensions):
            raise MIRError("meters of different models cannot be merged")
        self._dimensions = self._dimensions or other._dimensions
        self.tokens.merge(other.tokens)
        for number, sums in other.sums.items():
            for own_sums, more_sums in zip(self.sums[number], sums, strict=True):
                own_sums.merge(more_sums)
        for number, means in other.means.items():
            self.means.setdefault(number, []).extend(means)
        self.documents |= other.documents
        self.measured = self.measured | other.measured
        self._first = self._first or other._first

    def only(self, documents: Collection[DocumentId]) -> "MIRMeter":
        """A meter of some documents and of the layers whose rows are kept, which are shared."""
        part = MIRMeter(numbers=self.tokens.kept(), **self.options._asdict())
        chosen = {n: i for n, i in enumerate(self.documents) if i in documents}
        part.documents = {document_id: self.documents[document_id] for document_id in chosen.values()}
        part.tokens = self.tokens.only(chosen)
        part.means = {number: [means[n] for n in chosen] for number, means in self.means.items()}
        return part

    def needs_second_pass(self) -> bool:
        """Whether there was no room for rows of some layers, so that the documents must run again."""
        return self._learned is not None or len(self.tokens.kept()) < len(self.tokens.layers)

    def second_pass(self) -> "MIRMeter":
        """An empty meter for the same documents again, which knows what this one tells of them.

        The documents counted here, on all processes together, must be all there are: none can be counted
        any more. Layers whose rows were kept are measured now, and their rows are forgotten.
        """
        if self._learned is None:
            known = self._learn()
            measured = self._distances({n: self.layer(n) for n in self.tokens.kept()}, known)
            self._learned = {n: of for n, of in known.items() if n not in measured}, measured
            self.clear()
        known, measured = self._learned
        numbers = self.numbers or tuple(range(1, len(self._dimensions) + 1))
        again = MIRMeter(numbers=numbers, known=known, **self.options._asdict())
        again.measured, again._first = measured, dict(self.documents)
        return again

    def compute(self, progress: Bar = lambda layers: layers) -> MIRResult:
        """MIR of all documents counted, with its standard error where groups were asked for.

        Outliers are those among all documents, in the jackknife too. No standard error is given while
        a group is empty, or where too few tokens are left without one.

        Args:
            progress: wraps the numbers of the layers, for a bar.

        Raises:
            MIRError: no documents, rows that were not kept, a second pass over other documents than the
                first, or as `modality_integration_rate`.
        """
        if not self.documents:
            raise MIRError("no documents were counted, so there is nothing to measure")
        if self.needs_second_pass():
            raise MIRError(
                "there was no room to keep the rows of all layers: count the documents once more by the "
                "meter that second_pass() returns, or raise memory (GiB)"
            )
        if self._first is not None and (differing := self._first.keys() ^ self.documents.keys()):
            raise MIRError(
                f"the second pass must count the documents of the first; {len(differing)} were counted "
                f"in one of them only, such as {min(differing, key=str)!r}"
            )
        known = self.known or self._learn()
        layers = {number: self.layer(number) for number in known}
        measured = self.measured | self._distances(layers, known, progress)
        return result_of_layers(measured.values(), self.options.outliers)

    def layer(self, number: int) -> Layer:
        """What was counted of the layer of that number; empty where there was no document."""
        return Layer(self.sums.get(number) or self.tokens.layer(number), self.means.get(number, []))

    def clear(self) -> None:
        """Hold no more rows and sums."""
        self.tokens, self.sums, self.means = FirstPass(None), {}, {}

    def _learn(self) -> dict[int, KnownLayer]:
        tokens = self.tokens
        return learn(tokens.layers, list(self.documents.values()), tokens.choices, self.options)

    def _distances(
        self, layers: dict[int, Layer], known: Mapping[int, KnownLayer], bar: Bar = lambda layers: layers
    ) -> dict[int, ComputedLayer]:
        left_out = groups_to_leave_out(known.values(), self.options.groups, self.options.outliers)
        groups = list(self.documents.values())
        return distances(
            layers, known, groups, [] if isinstance(left_out, str) else left_out, self.options, bar=bar
        )

    def _group(self, document_id: DocumentId, row: int | None) -> int:
        """The group of a document that is to be counted next; that of the first pass in a second."""
        before = (self._first or {}).get(document_id)
        if row is None:
            row = len(self.documents) if before is None else before
        group = row % max(self.options.groups, 1)
        if before not in (None, group):
            raise MIRError(f"its group is {group} (row {row}), and was {before} in the first pass")
        return group

    def _check_open(self, documents: Collection[DocumentId]) -> None:
        """Raise MIRError where no document, or none of these, can be counted any more."""
        if self._learned is not None:
            raise MIRError("a second pass has been asked for, so this meter counts no more documents")
        for document_id in documents:
            if document_id in self.documents:
                raise MIRError(f"document {document_id!r} was counted before; count each document once")

    def _check_layers(self, numbers: Sequence[int], rows: Sequence[Sequence[Tensor]]) -> None:
        """Raise MIRError unless the layers of a document fit each other and those counted so far."""
        dimensions = [part.shape[1] for part in rows[0]]
        if len(dimensions) != len(numbers):
            raise MIRError(f"rows of {len(dimensions)} layers came, the meter counts {len(numbers)}")
        if self._dimensions and dimensions != self._dimensions:
            raise MIRError(
                f"{len(dimensions)} layers of {dimensions[0]} dimensions, those before have "
                f"{len(self._dimensions)} of {self._dimensions[0]}: one meter counts one model"
            )
        for modality, parts in zip(MODALITIES, rows, strict=True):
            if len(parts[0]) == 0 and need(self.options.extras, "means"):
                raise MIRError(
                    f"it has no {modality} tokens, and of the extras {', '.join(self.options.extras)} "
                    "some take the mean of each document's"
                )
            for number, part in zip(numbers, parts, strict=True):
                if len(part) != len(parts[0]):
                    raise MIRError(
                        f"layer {number} has {len(part)} {modality} tokens, layer {numbers[0]} has "
                        f"{len(parts[0])}: every layer must have the same tokens"
                    )

    def _no_sums(self, known: KnownLayer) -> list[Sums]:
        return [Sums(of_modality, self.options.outliers, self.options.groups) for of_modality in known]
