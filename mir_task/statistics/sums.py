"""Second pass over the tokens of one layer and modality: moments and counts by group of documents."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mir_task.metric.definition import Modality
from mir_task.metric.precision import root_dtype
from mir_task.statistics import medians
from mir_task.statistics.moments import CHUNK, Moments, numbers_of
from mir_task.statistics.sample import SAMPLE
from mir_task.statistics.tokens import Tokens

FOLDED_AT_ONCE = 4096
"""Rows that wait to be folded into the moments, for products of a size that is fast."""


class Bounds(NamedTuple):
    """Norms between which a token is no outlier: median - 3 std and median + 3 std."""

    low: float
    high: float

    @classmethod
    def of(cls, norms: Tensor) -> "Bounds":
        """From the norms [n] of all tokens: lower median and unbiased standard deviation."""
        middle, spread = float(norms.median()), 3 * float(norms.std()) if len(norms) > 1 else 0.0
        return cls(middle - spread, middle + spread)

    def inside(self, norms: Tensor) -> Tensor:
        """True where a norm [n] is within the bounds."""
        return (norms >= self.low) & (norms <= self.high)


class Group(NamedTuple):
    """The tokens of one group of documents."""

    tokens: int
    outliers: int
    norms: float
    """Sum of their raw L2 norms."""


class Known(NamedTuple):
    """What is known of the tokens of one layer and modality after the first pass, on every process."""

    bounds: Bounds
    groups: Mapping[int, Group]
    centre: Tensor
    """float64 [d], near the mean: medians of the sample."""
    thresholds: Tensor
    """[q, d] around the medians, in the dtype of the rows."""
    sample: Tensor | None = None
    """Raw float32 rows [n, d] of the sample on the CPU, lowest priority first, where asked for."""

    @classmethod
    def of(cls, norms: Mapping[int, Tensor], sample: Tensor, *, keep: int = 0) -> "Known":
        """What the first pass tells.

        Args:
            norms: [n] of all tokens by group of documents, on the CPU.
            sample: rows [n, d] of these tokens, lowest priority first.
            keep: rows of the sample to keep.
        """
        bounds = Bounds.of(torch.cat(list(norms.values())))
        groups = {
            group: Group(len(n), int((~bounds.inside(n)).sum()), float(n.sum()))
            for group, n in sorted(norms.items())
        }
        thresholds = medians.around(sample)
        centre = thresholds[len(medians.QUANTILES) // 2].double()
        return cls(bounds, groups, centre, thresholds, sample[:keep].float().cpu() if keep else None)

    def without(self, left_out: int | None) -> Group:
        """All tokens but those of one group; all if None."""
        kept = [part for group, part in self.groups.items() if group != left_out]
        return Group(*(sum(n) for n in zip(*kept, strict=True))) if kept else Group(0, 0, 0.0)

    @property
    def whole(self) -> Group:
        """All tokens."""
        return self.without(None)


KnownLayer = tuple[Known, Known]
"""Of the vision and of the text tokens."""


class Sums:
    """Sums over the tokens of one layer and modality, by group of documents.

    Args:
        known: of all tokens after the first pass.
        rule: of outliers, "replace" or "drop".
        groups: of documents; 0 counts as one.
        count: whether tokens are counted for the medians of `replace_outliers`, as they must be where
            no rows are kept to select them from.
    """

    def __init__(self, known: Known, rule: str, groups: int, *, count: bool = True) -> None:
        self.known = known
        self.replaces = rule == "replace" and known.whole.outliers > 0
        self.moments = Moments(known.centre, max(groups, 1), root_dtype(known.centre.device))
        self.below: Tensor | None = None
        """Tokens at or below the thresholds: int64 [q, d]."""
        if self.replaces and count:
            self.below = torch.zeros_like(known.thresholds, dtype=torch.int64)
        self.tokens = 0
        """That came."""
        self._waiting: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._rows_waiting = 0

    @classmethod
    def of_rows(cls, tokens: Tokens, known: Known, rule: str, groups: int, of: Sequence[int]) -> "Sums":
        """Of rows in memory; `groups` in number, and that of each document."""
        sums = cls(known, rule, groups, count=False)
        for document in sorted(range(len(of)), key=of.__getitem__):  # large products are faster
            assert tokens.rows is not None
            sums._wait(tokens.rows[document], tokens.norms[document], of[document])
        sums.fold()
        return sums

    def add(self, rows: Tensor, norms: Tensor, group: int) -> None:
        """Count rows [n, d], which are copied, and their norms [n] of one document."""
        place = self.moments.centre.device
        own = torch.empty(rows.shape, dtype=rows.dtype, device=place).copy_(rows)
        self._wait(own, norms.to(place), group)

    def _wait(self, rows: Tensor, norms: Tensor, group: int) -> None:
        self.tokens += len(rows)
        self._waiting.setdefault(group, []).append((rows, norms))
        self._rows_waiting += len(rows)
        if self._rows_waiting >= FOLDED_AT_ONCE:
            self.fold()

    def fold(self) -> None:
        """Fold the rows that wait into the sums."""
        for group, parts in self._waiting.items():
            rows, norms = (torch.cat(column) for column in zip(*parts, strict=True))
            self.moments.add(group, rows, self.known.bounds.inside(norms))
            if self.below is not None:
                self.below += medians.count_at_most(rows, self.known.thresholds)
        self._waiting, self._rows_waiting = {}, 0

    def tensors(self) -> list[Tensor]:
        """All that processes add up."""
        self.fold()
        return [self.moments.numbers, *(() if self.below is None else (self.below,))]

    def merge(self, other: "Sums") -> None:
        """Count the tokens of another that knows the same."""
        self.tokens += other.tokens
        for own, more in zip(self.tensors(), other.tensors(), strict=True):
            own += more.to(own.device)

    def replace_outliers(self, middle: Tensor | None = None) -> None:
        """Count the medians [d] once for each outlier; those of the counts where not given."""
        if not self.replaces:
            return
        if middle is None:
            assert self.below is not None
            middle = medians.of_counts(self.below, self.known.whole.tokens, self.known.thresholds)
        counts = self.moments.counts()
        for group, part in self.known.groups.items():
            self.moments.add_repeated(group, middle.to(self.moments.centre), part.tokens - counts[group])

    def modality(self, left_out: int | None = None) -> Modality:
        """All tokens, or all but those of one group, with the outlier rule applied."""
        whole = self.known.without(left_out)
        return Modality(
            self.moments.gaussian(left_out), whole.tokens, whole.outliers, whole.norms / whole.tokens
        )


def sums_bytes(size: int, itemsize: int, groups: int) -> int:
    """Memory of the sums of one layer's modalities.

    Args:
        size: dimensions of the hidden states.
        itemsize: bytes a number of them.
        groups: of documents.
    """
    return 2 * (8 * max(groups, 1) * numbers_of(size) + FOLDED_AT_ONCE * size * itemsize)


def computing_bytes(size: int, *, host: bool) -> int:
    """Memory that a layer's computation takes beside its sums.

    That is for rows in float64, covariances and their factors, and the selection of medians.

    Args:
        size: dimensions of the hidden states.
        host: whether it is computed on the host.
    """
    return 8 * (2 * CHUNK * size + 6 * size**2) + 8 * medians.SELECTED_AT_ONCE[not host]


def sample_bytes(size: int, itemsize: int) -> int:
    """Memory of the samples of one layer's modalities: arguments as of `sums_bytes`."""
    return 2 * SAMPLE * size * itemsize
