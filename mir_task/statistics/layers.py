"""One decoder layer in both passes, and from its sums to its distance."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from mir_task.diagnostics import linear_cka, mmd2
from mir_task.metric import Modality, layer_result, text_centric_terms
from mir_task.precision import root_dtype
from mir_task.result import MeasuredLayer
from mir_task.statistics import medians
from mir_task.statistics.known import Bounds, Known
from mir_task.statistics.moments import CHUNK, numbers_of
from mir_task.statistics.sample import SAMPLE, SampleChoice
from mir_task.statistics.tokens import FOLDED_AT_ONCE, FirstPass, SecondPass

MODALITIES = ("vision", "text")


class KnownLayer(NamedTuple):
    """What is known of a layer after the first pass, on every process."""

    vision: Known
    text: Known

    @property
    def bounds(self) -> tuple[Bounds, Bounds]:
        """Of each modality's norms."""
        return self.vision.bounds, self.text.bounds


class TokensOfDocument(NamedTuple):
    """Tokens of one document, layer and modality."""

    rows: Tensor
    """[n, d], of nobody else."""
    norms: Tensor
    """[n]."""
    slots: Tensor
    """[k] of the sample that go to some of the rows, on their device."""
    chosen: Tensor
    """[k], which rows these are."""


class LayerRows:
    """First pass over one layer."""

    def __init__(self) -> None:
        self.vision, self.text = FirstPass(), FirstPass()
        self.groups: list[int] = []
        """Of each document."""
        self.means: list[tuple[Tensor, Tensor]] = []
        """Mean rows [d] of each document's vision and text tokens, where CKA needs them."""

    @property
    def modalities(self) -> tuple[FirstPass, FirstPass]:
        """Vision and text."""
        return self.vision, self.text

    @property
    def device(self) -> torch.device | None:
        """Of the rows; None while there are none."""
        return None if self.text.like is None else self.text.like.device

    @property
    def kept(self) -> bool:
        """Whether the rows are in memory."""
        return self.vision.rows is not None

    @property
    def nbytes(self) -> int:
        """Memory of rows and samples."""
        return self.vision.nbytes + self.text.nbytes

    def copied(self, modality: int, rows: Tensor) -> Tensor:
        """Rows [n, d] of a modality as `add` takes them, in memory that nobody else writes to."""
        return self.modalities[modality].copied(rows)

    def add(self, parts: Sequence[TokensOfDocument], group: int, *, means: bool) -> None:
        """Count one document's vision and text tokens; `means` keeps their mean rows too."""
        self.groups.append(group)
        for tokens, part in zip(self.modalities, parts, strict=True):
            tokens.add(part.rows, part.norms, part.slots, part.chosen)
        if means:
            self.means.append(_means(parts))

    def merge(self, other: "LayerRows", entering: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Count the documents of another; `entering` as in `FirstPass.merge`, of each modality."""
        for own, more, moved in zip(self.modalities, other.modalities, entering, strict=True):
            own.merge(more, *moved)
        self.groups += other.groups
        self.means += other.means

    def forget_rows(self, choices: Sequence[SampleChoice]) -> None:
        """Keep no more of the rows than the samples."""
        for tokens, choice in zip(self.modalities, choices, strict=True):
            tokens.forget_rows(choice)

    def forget_norms(self) -> None:
        """Keep the norms of no token."""
        for tokens in self.modalities:
            tokens.norms.clear()

    def sampled(self, choices: Sequence[SampleChoice]) -> "LayerRows":
        """The same without the rows but those of the samples."""
        part = self.only(range(len(self.groups)))
        part.forget_rows(choices)
        return part

    def only(self, documents: Sequence[int]) -> "LayerRows":
        """Some of the documents, whose rows are kept; rows and norms are shared."""
        part = LayerRows()
        part.vision, part.text = (tokens.only(documents) for tokens in self.modalities)
        part.groups = [self.groups[document] for document in documents]
        part.means = [self.means[document] for document in documents] if self.means else []
        return part


class LayerSums:
    """Second pass over one layer.

    Args:
        known: of the layer after the first pass.
        rule: of outliers, "replace" or "drop".
        groups: of documents, one at least.
        exact: whether medians come of rows in memory.
    """

    def __init__(self, known: KnownLayer, rule: str, groups: int, *, exact: bool = False) -> None:
        products = root_dtype(known.text.centre.device)
        self.vision, self.text = (
            SecondPass(of_modality, rule, groups, products, exact=exact) for of_modality in known
        )
        self.means: list[tuple[Tensor, Tensor]] = []
        """As those of `LayerRows`."""

    @classmethod
    def of_rows(cls, layer: LayerRows, known: KnownLayer, rule: str, groups: int) -> "LayerSums":
        """The second pass over rows in memory.

        Args:
            layer: with its rows.
            known: of the layer.
            rule: of outliers.
            groups: of documents, one at least.
        """
        sums = cls(known, rule, groups, exact=True)
        sums.means = layer.means
        order = sorted(range(len(layer.groups)), key=layer.groups.__getitem__)
        for first, second in zip(layer.modalities, sums.modalities, strict=True):
            assert first.rows is not None
            for document in order:  # group by group, as large products are faster
                second.add(first.rows[document], first.norms[document], layer.groups[document])
            second.fold()
        return sums

    @property
    def modalities(self) -> tuple[SecondPass, SecondPass]:
        """Vision and text."""
        return self.vision, self.text

    def copied(self, modality: int, rows: Tensor) -> Tensor:
        """Rows [n, d] of a modality as `add` takes them, in memory that nobody else writes to."""
        return self.modalities[modality].copied(rows)

    def add(self, parts: Sequence[TokensOfDocument], group: int, *, means: bool) -> None:
        """Count one document's vision and text tokens; `means` keeps their mean rows too."""
        for tokens, part in zip(self.modalities, parts, strict=True):
            tokens.add(part.rows, part.norms, group)
        if means:
            self.means.append(_means(parts))

    @property
    def tokens(self) -> list[int]:
        """Tokens of each modality that came."""
        return [tokens.tokens for tokens in self.modalities]

    def merge(self, other: "LayerSums") -> None:
        """Count the documents of another that knows the same."""
        for own, more in zip(self.modalities, other.modalities, strict=True):
            own.tokens += more.tokens
            for sums, others in zip(own.sums(), more.sums(), strict=True):
                sums += others.to(sums.device)
        self.means += other.means

    def tensors(self) -> list[Tensor]:
        """All that processes add up."""
        return [*self.vision.sums(), *self.text.sums()]


def _means(parts: Sequence[TokensOfDocument]) -> tuple[Tensor, Tensor]:
    vision, text = (part.rows.float().mean(0) for part in parts)
    return vision, text


def sums_bytes(size: int, itemsize: int, groups: int) -> int:
    """Memory of one layer's second pass.

    Args:
        size: dimensions of the hidden states.
        itemsize: bytes a number of them.
        groups: of documents.
    """
    return 2 * (8 * max(groups, 1) * numbers_of(size) + FOLDED_AT_ONCE * size * itemsize)


def computing_bytes(size: int, *, host: bool) -> int:
    """Memory that the computation of a layer takes beside its sums.

    That is for rows in float64, covariances and their factors, and the selection of medians.

    Args:
        size: dimensions of the hidden states.
        host: whether it is computed on the host.
    """
    return 8 * (2 * CHUNK * size + 6 * size**2) + 8 * medians.SELECTED_AT_ONCE[not host]


def sample_bytes(size: int, itemsize: int) -> int:
    """Memory of one layer's samples in a first pass that does not keep its rows."""
    return 2 * SAMPLE * size * itemsize


def exact_medians(layer: LayerRows, known: KnownLayer, rule: str) -> list[Tensor | None]:
    """Of each modality the medians [d] that take the place of outliers; None where there are none."""
    return [
        medians.of_rows(tokens.rows or ()) if rule == "replace" and of_modality.outliers else None
        for tokens, of_modality in zip(layer.modalities, known, strict=True)
    ]


def measured(
    number: int,
    sums: LayerSums,
    middles: Sequence[Tensor | None],
    left_out: Iterable[int],
    dtype: torch.dtype | None,
    *,
    extras: Collection[str] = (),
    means: Sequence[tuple[Tensor, Tensor]] = (),
    sample_rows: int = 0,
) -> MeasuredLayer:
    """A layer's distance, and those without the documents of one group each.

    Args:
        number: of the layer, from 1.
        sums: of all tokens.
        middles: medians of each modality, or None for those of the sums' counts.
        left_out: groups to leave out one at a time. Outliers are those among all tokens.
        dtype: of the covariances when the root is taken; None for what suits the device.
        extras: "cka", "mmd" and "entropy_rank", which take more than means and covariances.
        means: mean rows of each document's tokens, for "cka".
        sample_rows: raw rows of a modality to hand out.

    Raises:
        MIRError: text tokens that are all zero, or a figure that is not finite.
    """
    for tokens, middle in zip(sums.modalities, middles, strict=True):
        tokens.replace_outliers(middle)
    chosen = dtype or root_dtype(sums.text.moments.centre.device)

    def modalities(group: int | None) -> tuple[Modality, Modality]:
        vision, text = (tokens.modality(group) for tokens in sums.modalities)
        return (
            vision._replace(gaussian=vision.gaussian.to(chosen)),
            text._replace(gaussian=text.gaussian.to(chosen)),
        )

    result, terms = layer_result(number, *modalities(None), entropy="entropy_rank" in extras)
    vision_sample, text_sample = (tokens.known.sample for tokens in sums.modalities)
    if "cka" in extras:
        result = replace(result, cka=linear_cka(*map(torch.stack, zip(*means, strict=True))))
    rows = None
    if vision_sample is not None and text_sample is not None:
        if "mmd" in extras:
            result = replace(result, mmd2=mmd2(vision_sample, text_sample))
        rows = (vision_sample[:sample_rows], text_sample[:sample_rows]) if sample_rows else None
    left_out_terms = (text_centric_terms(number, *modalities(group), near=terms) for group in left_out)
    return MeasuredLayer(result, tuple(scaled.distance for scaled, _ in left_out_terms), rows)
