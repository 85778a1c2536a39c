"""MIR of a model, one document at a time, in bounded memory: `MIRMeter`."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from mir_task.errors import MIRError
from mir_task.metric import MIRResult, check_outlier_rule, check_rows, host_norms
from mir_task.moments import KnownLayer, LayerStatistics

DocumentId = str | int


class MIRMeter:
    """MIR of a model, one document at a time, in bounded memory.

    Documents may come in any order and on any number of processes: `merge` joins meters, and
    `compute` gives the same figure for the same documents, up to rounding. Statistics of a layer live
    on the device of the rows that `update` is given, norms of tokens on the CPU.

    Args:
        outliers: `"replace"` or `"drop"`, as in `modality_integration_rate`.
        groups: number of document groups of the delete-a-group jackknife that gives `mir_stderr`;
            0 for none. Each keeps a second moment of its own.
        dtype: of the covariances when the root is taken; float64 when None.
        kept_rows: tokens of a layer and modality that are kept as rows; as many as take the memory of
            one float64 covariance when None.
        late: what `compute` does when a token was folded in before it turned out an outlier:
            `"raise"`, so that the documents are run again through `second_pass()`, or `"count"`.
        numbers: 1-based numbers of the decoder layers whose rows `update` is given; all, from the
            first, when None.
        known: what a first pass over the same documents found, by layer number.
        sample_rows: raw rows of each modality that a layer's `measured` hands out, 1024 at most.
        extras: `"cka"` and `"mmd"`, figures of a layer that take more than its means and covariances.
    """

    def __init__(
        self,
        *,
        outliers: str = "replace",
        groups: int = 0,
        dtype: torch.dtype | None = None,
        kept_rows: int | None = None,
        late: str = "raise",
        numbers: Sequence[int] | None = None,
        known: Mapping[int, KnownLayer] | None = None,
        sample_rows: int = 0,
        extras: Sequence[str] = (),
    ) -> None:
        check_outlier_rule(outliers)
        if groups < 0 or groups == 1:
            raise MIRError(f"groups must be 0 (no standard error) or at least 2, got {groups}")
        if late not in ("raise", "count"):
            raise MIRError(f"late must be raise or count, got {late!r}")
        self.outliers = outliers
        self.groups = groups
        self.dtype = dtype
        self.kept_rows = kept_rows
        self.late = late
        self.numbers = None if numbers is None else tuple(numbers)
        self.sample_rows = sample_rows
        self.extras = tuple(extras)
        self.documents: dict[DocumentId, int] = {}
        """Group of each document counted."""
        self.layers: dict[int, LayerStatistics] = {}
        """By layer number."""
        self._known = known or {}
        self._dimensions: list[int] = []

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
        group: int = 0,
    ) -> None:
        """Count one document.

        Args:
            document_id: counted once; a second time is an error.
            vision_rows: one tensor [vision tokens, d] a decoder layer.
            text_rows: one tensor [text tokens, d] a decoder layer.
            group: position of the document in the draw; its group is this modulo `groups`.

        Raises:
            MIRError: the document was counted before, its rows hold NaN or infinity (document and
                layer are named), or its layers do not fit those counted so far. Nothing of it is
                counted then.
        """
        numbers = self.numbers or tuple(range(1, len(vision_rows) + 1))
        rows = list(zip(numbers, vision_rows, text_rows, strict=False))
        try:
            check_rows(vision_rows, text_rows)
            norms = [
                host_norms(dict(zip(numbers, tokens, strict=False)), modality)
                for modality, tokens in (("vision", vision_rows), ("text", text_rows))
            ]
        except MIRError as error:
            raise MIRError(f"document {document_id!r}: {error}") from None
        self._check_dimensions(document_id, [tokens.shape[1] for tokens in vision_rows])
        group = group % self.groups if self.groups else 0
        self._enter(document_id, group)
        priorities = [
            _priorities(document_id, n, len(m[0])) for n, m in enumerate((vision_rows, text_rows))
        ]
        for (number, vision, text), *of_layer in zip(rows, *norms, strict=True):
            layer = self.layer(number)
            layer.pair(vision.detach(), text.detach())
            for statistics, tokens, own, priority in zip(
                (layer.vision, layer.text), (vision, text), of_layer, priorities, strict=True
            ):
                statistics.add(tokens.detach(), own, group, priority)

    def merge(self, other: "MIRMeter") -> None:
        """Count all documents of another meter of the same model and settings.

        Raises:
            MIRError: the settings differ or a document is in both.
        """
        names = ("outliers", "groups", "dtype", "kept_rows", "late", "numbers", "sample_rows", "extras")
        mine, theirs = ({name: getattr(meter, name) for name in names} for meter in (self, other))
        if mine != theirs:
            raise MIRError(f"meters of different settings cannot be merged: {mine} and {theirs}")
        for document_id, group in other.documents.items():
            self._enter(document_id, group)
        if not other.layers:
            return
        self._dimensions = self._dimensions or other._dimensions
        if other._dimensions != self._dimensions:
            raise MIRError("meters of different models cannot be merged")
        for number, layer in other.layers.items():
            self.layer(number).merge(layer)

    def needs_second_pass(self) -> bool:
        """Whether bounds or medians moved too far from what rows were folded in by."""
        return any(layer.needs_second_pass() for layer in self.layers.values())

    def second_pass(self) -> "MIRMeter":
        """An empty meter that knows the bounds and about the medians, for the same documents again.

        The documents counted here, on all processes together, must be all there are.
        """
        return MIRMeter(
            outliers=self.outliers,
            groups=self.groups,
            dtype=self.dtype,
            kept_rows=self.kept_rows,
            late=self.late,
            numbers=self.numbers,
            known={number: layer.known() for number, layer in self.layers.items()},
            sample_rows=self.sample_rows,
            extras=self.extras,
        )

    def compute(
        self, progress: Callable[[Iterable[int]], Iterable[int]] = lambda layers: layers
    ) -> MIRResult:
        """MIR of all documents counted, with its standard error where groups were asked for.

        Outliers are those among all documents, in the jackknife too. No standard error is given while
        a group is empty.

        Args:
            progress: wraps the numbers of the layers, for a bar.

        Raises:
            MIRError: no documents, a token that asks for a second pass, or as
                `modality_integration_rate`.
        """
        if not self.documents:
            raise MIRError("no documents were counted, so there is nothing to measure")
        if self.late == "raise" and self.needs_second_pass():
            raise MIRError(
                "tokens were folded in before they turned out outliers (or the reverse), or the medians "
                "moved: run the documents again through second_pass(), or count with late='count'"
            )
        left_out = groups_to_leave_out(self.documents.values(), self.groups)
        measured = (
            self.layers[number].measured(number, left_out, self.dtype or torch.float64)
            for number in progress(sorted(self.layers))
        )
        return MIRResult.of_layers(measured, self.outliers)

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
        self._dimensions = dimensions

    def _enter(self, document_id: DocumentId, group: int) -> None:
        if document_id in self.documents:
            raise MIRError(f"document {document_id!r} was counted before; count each document once")
        self.documents[document_id] = group

    def layer(self, number: int) -> LayerStatistics:
        """Statistics of the layer of that number; empty ones while no document was counted."""
        if number not in self.layers:
            known = self._known.get(number)
            self.layers[number] = LayerStatistics(
                self.outliers, self.kept_rows, known, self.sample_rows, self.extras
            )
        return self.layers[number]


def groups_to_leave_out(of_documents: Iterable[int], groups: int) -> list[int]:
    """The groups of the jackknife, or none where one of them has no document."""
    present = sorted(set(of_documents))
    return present if groups and len(present) == groups else []


def _priorities(document_id: DocumentId, modality: int, count: int) -> Tensor:
    """Numbers in [0, 1) by which tokens enter the sample; they depend on nothing but the document."""
    digest = hashlib.sha256(f"{document_id}\0{modality}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
    return torch.rand(count, generator=generator, dtype=torch.float64)
