"""Token statistics that accumulate document by document: `MIRMeter`."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mir_task.errors import MIRError
from mir_task.metric import MIRResult, check_outlier_rule, check_rows, modality_integration_rate

DocumentId = str | int


class _Document(NamedTuple):
    vision: tuple[Tensor, ...]
    text: tuple[Tensor, ...]
    group: int


class MIRMeter:
    """MIR of a model, one document at a time.

    Documents may come in any order and on any number of processes: `merge` joins meters, and
    `compute` gives the same figure for the same documents.

    Args:
        outliers: `"replace"` or `"drop"`, as in `modality_integration_rate`.
        groups: number of document groups of the delete-a-group jackknife that gives `mir_stderr`;
            0 for none.
        dtype: of norms, covariances and root; float64 when None.
    """

    def __init__(
        self, *, outliers: str = "replace", groups: int = 0, dtype: torch.dtype | None = None
    ) -> None:
        check_outlier_rule(outliers)
        if groups < 0 or groups == 1:
            raise MIRError(f"groups must be 0 (no standard error) or at least 2, got {groups}")
        self.outliers = outliers
        self.groups = groups
        self.dtype = dtype
        self._documents: dict[DocumentId, _Document] = {}

    def __len__(self) -> int:
        """Number of documents."""
        return len(self._documents)

    def __contains__(self, document_id: DocumentId) -> bool:
        """Whether this document was counted."""
        return document_id in self._documents

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
                layer are named), or its layers do not fit those counted so far.
        """
        if document_id in self._documents:
            raise MIRError(f"document {document_id!r} was counted before; count each document once")
        try:
            check_rows(vision_rows, text_rows)
        except MIRError as error:
            raise MIRError(f"document {document_id!r}: {error}") from None
        if self._documents:
            first_id, first = next(iter(self._documents.items()))
            expected = [rows.shape[1] for rows in first.vision]
            if [rows.shape[1] for rows in vision_rows] != expected:
                raise MIRError(
                    f"document {document_id!r} has {len(vision_rows)} layers of "
                    f"{vision_rows[0].shape[1]} dimensions, document {first_id!r} has "
                    f"{len(expected)} of {expected[0]}: one meter counts one model"
                )
        self._documents[document_id] = _Document(
            tuple(vision_rows), tuple(text_rows), group % self.groups if self.groups else 0
        )

    def merge(self, other: "MIRMeter") -> None:
        """Count all documents of another meter of the same model and settings.

        Raises:
            MIRError: the settings differ or a document is in both.
        """
        mine, theirs = ((m.outliers, m.groups, m.dtype) for m in (self, other))
        if mine != theirs:
            raise MIRError(f"meters of different settings cannot be merged: {mine} and {theirs}")
        for document_id, document in other._documents.items():
            self.update(document_id, document.vision, document.text, group=document.group)

    def compute(self) -> MIRResult:
        """MIR of all documents counted, with its standard error where groups were asked for.

        The standard error is the delete-a-group jackknife: with MIR_(g) over all documents but group
        g's, and G groups, sqrt((G - 1) / G * sum_g (MIR_(g) - mean)^2). It is None while any group
        is empty.

        Raises:
            MIRError: no documents, or as `modality_integration_rate`.
        """
        if not self._documents:
            raise MIRError("no documents were counted, so there is nothing to measure")
        result = self._measure(list(self._documents.values()))
        present = {document.group for document in self._documents.values()}
        if len(present) < max(self.groups, 2):
            return result
        left_out = [
            self._measure([d for d in self._documents.values() if d.group != group])
            for group in sorted(present)
        ]
        values = torch.tensor([replicate.mir for replicate in left_out], dtype=torch.float64)
        spread = (values - values.mean()).square().sum().item()
        return MIRResult(
            layers=result.layers,
            outliers=result.outliers,
            mir_stderr=math.sqrt((len(values) - 1) / len(values) * spread),
            leave_one_group_out=tuple(
                tuple(layer.frechet for layer in replicate.layers) for replicate in left_out
            ),
        )

    def _measure(self, documents: list[_Document]) -> MIRResult:
        layers = range(len(documents[0].vision))
        return modality_integration_rate(
            [torch.cat([d.vision[k] for d in documents]) for k in layers],
            [torch.cat([d.text[k] for d in documents]) for k in layers],
            outliers=self.outliers,
            dtype=self.dtype,
        )
