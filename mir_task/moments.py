"""Token statistics that accumulate in bounded memory, merge, and finalise: `MIRMeter`.

Of each layer and modality it keeps the norm of every token (8 bytes), and the tokens' rows as long as
these take no more memory than one covariance: then all is computed from the rows. Beyond that, rows are
folded into count, mean and centred second moment per group of documents (merged by Chan's formula), and
only those stay whose norm is close to the bounds of the 3-sigma rule as it stands. At the end, when all
norms are known, both sides of a bound are settled for good. A token that was folded in and turns out an
outlier after all (or the reverse) is found by its norm, and a second pass is asked for, which knows the
bounds.

Medians, which the rule "replace" puts in the place of outliers, come from counts: how many tokens lie
below five thresholds around the median of each dimension, chosen from the rows that waited first. A
sample of rows, drawn by a hash of document and position so that it does not depend on order or split,
stands in where the median moved out of the thresholds.
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mir_task.errors import MIRError
from mir_task.frechet import Gaussian
from mir_task.metric import (
    LayerResult,
    MIRResult,
    Modality,
    check_enough,
    check_not_zero,
    check_outlier_rule,
    check_rows,
    layer_result,
)

DocumentId = str | int

SAMPLE = 1024
"""Rows in the sample of all tokens."""
_QUANTILES = (0.3, 0.45, 0.5, 0.55, 0.7)
# Share of dimensions whose median may come from the sample before a second pass is asked for.
_OUT_OF_REACH = 0.25
# Rows that may wait at least, whatever a covariance takes.
_WAIT = 2048
# Tokens this many standard deviations from the median wait for the bounds (at 3) to settle: in the
# first of these bands that holds few enough.
_BANDS = ((2.0, 5.0), (2.5, 3.7), (2.8, 3.2), (3.0, 3.0))
# Bounds are estimated anew when there are this many times more tokens.
_GROWTH = 1.1
_CHUNK = 4096
_BLOCKS = 8


class Bounds(NamedTuple):
    """Norms between which a token is no outlier: median - 3 std and median + 3 std."""

    low: float
    high: float

    @classmethod
    def of(cls, norms: Tensor, *deviations: float) -> "list[Bounds]":
        """From the norms [n] of all tokens: lower median and some numbers of unbiased stds."""
        middle, std = float(norms.median()), float(norms.std())
        return [cls(middle - number * std, middle + number * std) for number in deviations]

    def outside(self, norms: Tensor) -> Tensor:
        """True where a norm [n] is out of bounds."""
        return (norms < self.low) | (norms > self.high)


def _precision(rows: Tensor) -> torch.dtype:
    """Of sums over rows: half-precision rows carry errors that float32 does not add to."""
    return torch.float32 if rows.dtype in (torch.float16, torch.bfloat16) else torch.float64


class Moments:
    """Count, mean [d] and centred second moment [d, d] of rows, in float64."""

    def __init__(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        self.count = count
        self.mean = mean
        self.scatter = scatter
        """Sum of (x - mean)(x - mean)^T; the lower half alone is meant."""

    @classmethod
    def of_rows(cls, rows: Tensor) -> "Moments":
        """Of rows [n, d].

        Products of half-precision rows are summed in float32 a few thousand rows at a time, after
        centring on the mean of the first of them; all else is float64. Only the blocks of the lower half
        are multiplied.
        """
        size = rows.shape[1]
        scatter = torch.zeros(size, size, dtype=torch.float64, device=rows.device)
        if not len(rows):
            return cls(0, torch.zeros(size, dtype=torch.float64, device=rows.device), scatter)
        precision = _precision(rows)
        centre = rows[:_CHUNK].to(precision).mean(0)
        shift = torch.zeros(size, dtype=torch.float64, device=rows.device)
        edges = [size * n // _BLOCKS for n in range(_BLOCKS + 1)]
        for chunk in torch.split(rows, _CHUNK):
            centred = chunk.to(precision) - centre
            shift += centred.sum(0)
            for start, end in itertools.pairwise(edges):
                scatter[start:, start:end] += centred[:, start:].T @ centred[:, start:end]
        shift /= len(rows)
        scatter.addr_(shift, shift, alpha=-len(rows))
        return cls(len(rows), centre + shift, scatter)

    @classmethod
    def repeated(cls, row: Tensor, count: int) -> "Moments":
        """Of one row [d], `count` times."""
        size = len(row)
        return cls(count, row.double(), torch.zeros(size, size, dtype=torch.float64, device=row.device))

    def copy(self) -> "Moments":
        """With tensors of its own."""
        return Moments(self.count, self.mean.clone(), self.scatter.clone())

    def merge(self, other: "Moments") -> None:
        """Add the rows of another (Chan, Golub and LeVeque 1979)."""
        total = self.count + other.count
        if not other.count:
            return
        delta = other.mean - self.mean
        self.scatter += other.scatter
        self.scatter.addr_(delta, delta, alpha=self.count * other.count / total)
        self.mean += delta * (other.count / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """Mean and covariance (n - 1)."""
        covariance = (self.scatter.tril() + self.scatter.tril(-1).T) / (self.count - 1)
        return Gaussian(self.mean, covariance, None)


class MedianCounts:
    """How many rows lie at or below each of some thresholds [q, d], and of how many rows."""

    def __init__(self, thresholds: Tensor) -> None:
        self.thresholds = thresholds
        self.below = torch.zeros(thresholds.shape, dtype=torch.int64, device=thresholds.device)
        self.rows = 0

    @classmethod
    def around(cls, rows: Tensor) -> "MedianCounts":
        """With thresholds at quantiles of rows [n, d]."""
        ordered = rows.T.contiguous().sort(1).values
        places = [round(quantile * (len(rows) - 1)) for quantile in _QUANTILES]
        return cls(ordered[:, places].T.contiguous())

    def count(self, rows: Tensor) -> None:
        """Count rows [n, d]."""
        for below, threshold in zip(self.below, self.thresholds, strict=True):
            below += (rows <= threshold).sum(0, dtype=torch.int32)
        self.rows += len(rows)

    def share_below(self, values: Tensor) -> Tensor:
        """Share of rows at or below values [d], linear between the thresholds and beyond them."""
        shares = self.below.double() / self.rows
        thresholds = self.thresholds.double()
        cell = (thresholds[1:-1] < values).sum(0, keepdim=True)
        low, high = thresholds.gather(0, cell), thresholds.gather(0, cell + 1)
        start, end = shares.gather(0, cell), shares.gather(0, cell + 1)
        place = (values - low) / (high - low).clamp(min=torch.finfo(torch.float64).tiny)
        return (start + place * (end - start)).squeeze(0)


def medians(counts: Sequence[MedianCounts]) -> tuple[Tensor, Tensor]:
    """Median of each dimension [d] over all rows counted, and whether the thresholds reach it [d]."""
    counts = [part for part in counts if part.rows]
    rows = sum(part.rows for part in counts)
    low = torch.stack([part.thresholds[0] for part in counts]).double().amin(0)
    high = torch.stack([part.thresholds[-1] for part in counts]).double().amax(0)

    def share(values: Tensor) -> Tensor:
        total = torch.zeros_like(values)
        for part in counts:
            total += part.share_below(values) * (part.rows / rows)
        return total

    reached = torch.ones_like(low, dtype=torch.bool)
    for part in counts:
        first, last = part.thresholds[0].double(), part.thresholds[-1].double()
        reached &= (share(first) <= 0.5) & (share(last) >= 0.5)
    for _ in range(50):
        middle = (low + high) / 2
        above = share(middle) >= 0.5
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return high, reached


def merged(parts: Iterable[Moments]) -> Moments:
    """One Moments of several; the parts stay as they are."""
    first, *others = parts
    whole = first.copy()
    for other in others:
        whole.merge(other)
    return whole


class Finished(Protocol):
    """The tokens of one layer and modality, with outliers dealt with."""

    def modality(self, left_out: int | None) -> Modality:
        """All tokens, or all but those of one group."""


@dataclass
class _FinishedRows:
    """Fewer tokens than dimensions: the rows themselves are the factor of the covariance."""

    rows: Tensor
    row_groups: Tensor
    norms: Tensor
    norm_groups: Tensor
    outlier_groups: Tensor

    def modality(self, left_out: int | None) -> Modality:
        absent = -1 if left_out is None else left_out
        norms = self.norms[self.norm_groups != absent]
        return Modality(
            Gaussian.from_tokens(self.rows[self.row_groups != absent]),
            tokens=len(norms),
            outliers=int((self.outlier_groups != absent).sum()),
            norm=float(norms.mean()),
        )


@dataclass
class _FinishedMoments:
    """By group of documents."""

    moments: dict[int, Moments]
    norms: dict[int, Tensor]
    outliers: dict[int, int]

    def modality(self, left_out: int | None) -> Modality:
        kept = [group for group in self.norms if group != left_out]
        norms = torch.cat([self.norms[group] for group in kept])
        return Modality(
            merged(self.moments[group] for group in kept if group in self.moments).gaussian(),
            tokens=len(norms),
            outliers=sum(self.outliers[group] for group in kept),
            norm=float(norms.mean()),
        )


class _Tokens(NamedTuple):
    """Some tokens of one layer and modality."""

    rows: Tensor
    norms: Tensor
    groups: Tensor

    def at(self, mask: Tensor) -> "_Tokens":
        if bool(mask.all()):
            return self
        places = mask.nonzero().squeeze(1)
        return _Tokens(*(part.index_select(0, places) for part in self))


class Known(NamedTuple):
    """What a first pass over the tokens leaves to a second."""

    bounds: Bounds
    thresholds: Tensor | None
    """For the medians [q, d]; None with the rule "drop"."""


class TokenStatistics:
    """Statistics of the tokens of one layer and modality.

    Args:
        rule: of outliers, "replace" or "drop".
        capacity: rows that may wait; worked out from the first rows where None.
        known: what a first pass over the same tokens found.
    """

    def __init__(self, rule: str, capacity: int | None, known: Known | None = None) -> None:
        self.rule = rule
        self.capacity = capacity
        self.bounds = known.bounds if known else None
        self._counts: list[MedianCounts] = []
        if known and known.thresholds is not None:
            self._counts.append(MedianCounts(known.thresholds))
        self.count = 0
        self.moments: dict[int, Moments] = {}
        self._norms: dict[int, list[Tensor]] = {}
        self._waiting: list[_Tokens] = []
        self._waiting_count = 0
        self._discarded = dict[int, int]()
        # Norms of folded tokens lie between these, and those of discarded ones beyond the others.
        self._folded = Bounds(math.inf, -math.inf)
        self._discarded_norms = Bounds(-math.inf, math.inf)
        self._sample: list[tuple[Tensor, Tensor]] = []
        self._cutoff = math.inf
        self._estimate: tuple[int, list[tuple[Bounds, Bounds]]] = (0, [])

    def add(self, rows: Tensor, group: int, priorities: Tensor) -> None:
        """Count rows [n, d] of one document, with the hashes [n] by which they enter the sample."""
        if self.capacity is None:
            # As many rows as take the memory of one float64 covariance.
            self.capacity = max(8 * rows.shape[1] // rows.element_size(), _WAIT)
        norms = torch.linalg.vector_norm(rows, dim=1, dtype=_precision(rows)).double()
        groups = torch.full((len(rows),), group, dtype=torch.int16, device=rows.device)
        self._norms.setdefault(group, []).append(norms)
        self.count += len(rows)
        self._wait(_Tokens(rows, norms, groups))
        if self.rule == "replace":
            self._offer(rows, priorities)
            if self._counts:
                self._counts[0].count(rows)
        if self._waiting_count > self.capacity:
            self._settle()

    def merge(self, other: "TokenStatistics") -> None:
        """Count the tokens of another."""
        self.capacity = self.capacity or other.capacity
        self.count += other.count
        for group, norms in other._norms.items():
            self._norms.setdefault(group, []).extend(norms)
        for group, moments in other.moments.items():
            _merge_into(self.moments, group, moments.copy())
        for group, count in other._discarded.items():
            self._discarded[group] = self._discarded.get(group, 0) + count
        self._folded = Bounds(
            min(self._folded.low, other._folded.low), max(self._folded.high, other._folded.high)
        )
        self._discarded_norms = Bounds(
            max(self._discarded_norms.low, other._discarded_norms.low),
            min(self._discarded_norms.high, other._discarded_norms.high),
        )
        for rows, priorities in other._sample:
            self._offer(rows, priorities)
        self._merge_counts(other)
        for waiting in other._waiting:
            self._wait(waiting)
        if self.capacity is not None and self._waiting_count > self.capacity:
            self._settle()

    def _merge_counts(self, other: "TokenStatistics") -> None:
        counts = [MedianCounts(part.thresholds) for part in other._counts]
        for copy, part in zip(counts, other._counts, strict=True):
            copy.below, copy.rows = part.below.clone(), part.rows
        uncounted = other if self._counts else self
        if not uncounted._counts and (self._counts or counts) and uncounted._waiting:
            (self._counts or counts)[0].count(uncounted._all_waiting().rows)
        self._counts += counts

    def norms(self) -> Tensor:
        """Norms [n] of all tokens."""
        return torch.cat([norms for group in self._norms.values() for norms in group])

    def final_bounds(self) -> Bounds:
        """The bounds of the 3-sigma rule over all tokens counted."""
        return self.bounds or Bounds.of(self.norms(), 3)[0]

    def late(self) -> bool:
        """Whether a token is on the other side of the bounds than it was taken to be."""
        final, folded, discarded = self.final_bounds(), self._folded, self._discarded_norms
        return (
            folded.low < final.low
            or folded.high > final.high
            or discarded.low >= final.low
            or discarded.high <= final.high
        )

    def needs_second_pass(self) -> bool:
        """Whether bounds or medians moved too far from what the rows were folded in by."""
        if self.late():
            return True
        if not self._counts or self.bounds is not None or not self.outlier_count():
            return False
        return float((~medians(self._counts)[1]).double().mean()) > _OUT_OF_REACH

    def outlier_count(self) -> int:
        """Outliers among all tokens."""
        return int(self.final_bounds().outside(self.norms()).sum())

    def known(self) -> Known:
        """What a second pass over the same tokens needs."""
        thresholds = None
        if self.rule == "replace":
            self._prune()
            thresholds = MedianCounts.around(torch.cat([rows for rows, _ in self._sample])).thresholds
        return Known(self.final_bounds(), thresholds)

    def late_tokens(self) -> int:
        """How many tokens at least are on the other side of the bounds than they were taken to be."""
        if not self.late():
            return 0
        bounds = self.final_bounds()
        discarded = sum(self._discarded.values())
        excluded = int(bounds.outside(self._all_waiting().norms).sum()) + discarded
        return max(abs(self.outlier_count() - excluded), 1)

    def finish(self) -> Finished:
        """All tokens with the outlier rule applied; the statistics stay as they are."""
        bounds = self.final_bounds()
        waiting = self._all_waiting()
        out = bounds.outside(waiting.norms)
        inside, outside = waiting.at(~out), waiting.at(out)
        norms = {group: torch.cat(parts) for group, parts in self._norms.items()}
        outliers = {group: int(bounds.outside(values).sum()) for group, values in norms.items()}
        middle = self._medians() if self.rule == "replace" and any(outliers.values()) else None
        if not self.moments and self.count < inside.rows.shape[1]:
            rows, row_groups = inside.rows.double(), inside.groups
            if middle is not None:
                rows = torch.cat([rows, middle.double().expand(len(outside.rows), -1)])
                row_groups = torch.cat([row_groups, outside.groups])
            return _FinishedRows(rows, row_groups, waiting.norms, waiting.groups, outside.groups)
        moments = {group: part.copy() for group, part in self.moments.items()}
        for group in norms:
            rows = inside.rows[inside.groups == group]
            # Rows that were all kept are few, so float64 costs little.
            _merge_into(moments, group, Moments.of_rows(rows if self.moments else rows.double()))
            if middle is not None:
                replaced = int((outside.groups == group).sum()) + self._discarded.get(group, 0)
                _merge_into(moments, group, Moments.repeated(middle, replaced))
        return _FinishedMoments(moments, norms, outliers)

    def _wait(self, tokens: _Tokens) -> None:
        self._waiting.append(tokens)
        self._waiting_count += len(tokens.rows)

    def _all_waiting(self) -> _Tokens:
        if len(self._waiting) > 1:
            joined = _Tokens(*(torch.cat(parts) for parts in zip(*self._waiting, strict=True)))
            self._waiting = [joined]
        return self._waiting[0]

    def _settle(self) -> None:
        """Fold in the rows that are surely inliers, let go of sure outliers, keep the rest waiting."""
        waiting = self._all_waiting()
        if self.rule == "replace" and not self._counts:
            shuffled = torch.randperm(len(waiting.rows), generator=torch.Generator().manual_seed(0))
            counts = MedianCounts.around(waiting.rows[shuffled[:SAMPLE].to(waiting.rows.device)])
            counts.count(waiting.rows)
            self._counts.append(counts)
        assert self.capacity is not None
        for inner, outer in self._bands():
            inlier, outlier = ~inner.outside(waiting.norms), outer.outside(waiting.norms)
            if int((~inlier & ~outlier).sum()) <= self.capacity // 2:
                break
        chosen = waiting.at(inlier)
        for group in torch.unique(chosen.groups).tolist():
            _merge_into(self.moments, group, Moments.of_rows(chosen.at(chosen.groups == group).rows))
        if len(chosen.norms):
            self._folded = Bounds(
                min(self._folded.low, float(chosen.norms.min())),
                max(self._folded.high, float(chosen.norms.max())),
            )
        self._discard(waiting.at(outlier), middle=(inner.low + inner.high) / 2)
        self._waiting, self._waiting_count = [], 0
        self._wait(waiting.at(~inlier & ~outlier))

    def _bands(self) -> list[tuple[Bounds, Bounds]]:
        """Bounds inside which a token is taken for no outlier, and outside which for one; wide first."""
        if self.bounds is not None:
            return [(self.bounds, self.bounds)]
        if self.count > _GROWTH * self._estimate[0]:
            ends = Bounds.of(self.norms(), *itertools.chain.from_iterable(_BANDS))
            self._estimate = (self.count, list(zip(ends[::2], ends[1::2], strict=True)))
        return self._estimate[1]

    def _discard(self, tokens: _Tokens, middle: float) -> None:
        for group in torch.unique(tokens.groups).tolist():
            count = int((tokens.groups == group).sum())
            self._discarded[group] = self._discarded.get(group, 0) + count
        low, high = tokens.norms[tokens.norms < middle], tokens.norms[tokens.norms >= middle]
        self._discarded_norms = Bounds(
            max([self._discarded_norms.low, *low.tolist()]),
            min([self._discarded_norms.high, *high.tolist()]),
        )

    def _offer(self, rows: Tensor, priorities: Tensor) -> None:
        if not math.isinf(self._cutoff):
            chosen = priorities < self._cutoff
            rows, priorities = rows[chosen], priorities[chosen]
        self._sample.append((rows, priorities))
        if sum(len(p) for _, p in self._sample) > 2 * SAMPLE:
            self._prune()

    def _prune(self) -> None:
        priorities = torch.cat([p for _, p in self._sample])
        if len(priorities) > SAMPLE:
            lowest = priorities.topk(SAMPLE, largest=False)
            rows = torch.cat([r for r, _ in self._sample])[lowest.indices]
            self._sample = [(rows, lowest.values)]
            self._cutoff = float(lowest.values.max())

    def _medians(self) -> Tensor:
        """Lower median of each dimension [d]; of counts and the sample once rows were folded in."""
        waiting = self._all_waiting()
        if len(waiting.rows) == self.count:
            return waiting.rows.median(0).values
        middle, reached = medians(self._counts)
        self._prune()
        sampled = torch.cat([rows for rows, _ in self._sample]).median(0).values
        return torch.where(reached, middle, sampled.double())


def _merge_into(moments: dict[int, Moments], group: int, part: Moments) -> None:
    if group in moments:
        moments[group].merge(part)
    elif part.count:
        moments[group] = part


class MIRMeter:
    """MIR of a model, one document at a time, in bounded memory.

    Documents may come in any order and on any number of processes: `merge` joins meters, and
    `compute` gives the same figure for the same documents, up to rounding.

    Args:
        outliers: `"replace"` or `"drop"`, as in `modality_integration_rate`.
        groups: number of document groups of the delete-a-group jackknife that gives `mir_stderr`;
            0 for none. Each keeps a second moment of its own.
        dtype: of the covariances when the root is taken; float64 when None.
        kept_rows: tokens of a layer and modality that are kept as rows; as many as take the memory of
            one float64 covariance when None.
        late: what `compute` does when a token was folded in before it turned out an outlier:
            `"raise"`, so that the documents are run again through `second_pass()`, or `"count"`.
    """

    def __init__(
        self,
        *,
        outliers: str = "replace",
        groups: int = 0,
        dtype: torch.dtype | None = None,
        kept_rows: int | None = None,
        late: str = "raise",
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
        self._documents: dict[DocumentId, int] = {}
        self._layers: list[tuple[TokenStatistics, TokenStatistics]] = []
        self._known: list[tuple[Known, Known]] | None = None
        self._dimensions: list[int] = []

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
        try:
            check_rows(vision_rows, text_rows)
        except MIRError as error:
            raise MIRError(f"document {document_id!r}: {error}") from None
        dimensions = [rows.shape[1] for rows in vision_rows]
        if self._layers and dimensions != self._dimensions:
            raise MIRError(
                f"document {document_id!r} has {len(dimensions)} layers of {dimensions[0]} dimensions, "
                f"those before have {len(self._dimensions)} of {self._dimensions[0]}: one meter counts "
                "one model"
            )
        self._enter(document_id, group % self.groups if self.groups else 0)
        if not self._layers:
            self._start(dimensions)
        for modality, all_rows in enumerate((vision_rows, text_rows)):
            priorities = _priorities(document_id, modality, len(all_rows[0]))
            for statistics, rows in zip(self._layers, all_rows, strict=True):
                statistics[modality].add(
                    rows.detach(), self._documents[document_id], priorities.to(rows.device)
                )

    def merge(self, other: "MIRMeter") -> None:
        """Count all documents of another meter of the same model and settings.

        Raises:
            MIRError: the settings differ or a document is in both.
        """
        mine, theirs = ((m.outliers, m.groups, m.dtype, m.kept_rows, m.late) for m in (self, other))
        if mine != theirs:
            raise MIRError(f"meters of different settings cannot be merged: {mine} and {theirs}")
        for document_id, group in other._documents.items():
            self._enter(document_id, group)
        if not other._layers:
            return
        if not self._layers:
            self._start(other._dimensions)
        if other._dimensions != self._dimensions:
            raise MIRError("meters of different models cannot be merged")
        for own, others in zip(self._layers, other._layers, strict=True):
            for statistics, more in zip(own, others, strict=True):
                statistics.merge(more)

    def needs_second_pass(self) -> bool:
        """Whether bounds or medians moved too far from what rows were folded in by."""
        return any(statistics.needs_second_pass() for layer in self._layers for statistics in layer)

    def second_pass(self) -> "MIRMeter":
        """An empty meter that knows the bounds and about the medians, for the same documents again.

        The documents counted here, on all processes together, must be all there are.
        """
        again = MIRMeter(
            outliers=self.outliers,
            groups=self.groups,
            dtype=self.dtype,
            kept_rows=self.kept_rows,
            late=self.late,
        )
        again._known = [(vision.known(), text.known()) for vision, text in self._layers]
        return again

    def compute(
        self, progress: Callable[[Iterable[int]], Iterable[int]] = lambda layers: layers
    ) -> MIRResult:
        """MIR of all documents counted, with its standard error where groups were asked for.

        The standard error is the delete-a-group jackknife: with MIR_(g) over all documents but group
        g's, and G groups, sqrt((G - 1) / G * sum_g (MIR_(g) - mean)^2). Outliers are those among all
        documents. It is None while any group is empty.

        Args:
            progress: wraps the indices of the layers, for a bar.

        Raises:
            MIRError: no documents, a token that asks for a second pass, or as
                `modality_integration_rate`.
        """
        if not self._documents:
            raise MIRError("no documents were counted, so there is nothing to measure")
        late = sum(statistics.late_tokens() for layer in self._layers for statistics in layer)
        if self.late == "raise" and self.needs_second_pass():
            raise MIRError(
                "tokens were folded in before they turned out outliers (or the reverse), or the medians "
                "moved: run the documents again through second_pass(), or count with late='count'"
            )
        groups = sorted(set(self._documents.values()))
        left_out = groups if self.groups and len(groups) == self.groups else []
        full: list[LayerResult] = []
        replicates: list[list[float]] = [[] for _ in left_out]
        for index in progress(range(len(self._layers))):
            finished = []
            for modality, statistics in zip(("vision", "text"), self._layers[index], strict=True):
                check_enough(index + 1, modality, statistics.count)
                finished.append(statistics.finish())
            full.append(self._layer(index + 1, finished, None))
            for replicate, group in zip(replicates, left_out, strict=True):
                replicate.append(self._layer(index + 1, finished, group).frechet)
        check_not_zero(full)
        return MIRResult(
            layers=tuple(full),
            outliers=self.outliers,
            mir_stderr=_jackknife([math.log10(sum(values)) for values in replicates]),
            leave_one_group_out=tuple(tuple(values) for values in replicates),
            late_tokens=late,
        )

    def _layer(self, layer: int, finished: list[Finished], left_out: int | None) -> LayerResult:
        vision, text = (
            modality._replace(gaussian=modality.gaussian.to(self.dtype or torch.float64))
            for modality in (statistics.modality(left_out) for statistics in finished)
        )
        return layer_result(layer, vision, text)

    def _enter(self, document_id: DocumentId, group: int) -> None:
        if document_id in self._documents:
            raise MIRError(f"document {document_id!r} was counted before; count each document once")
        self._documents[document_id] = group

    def _start(self, dimensions: list[int]) -> None:
        self._dimensions = dimensions
        known: Sequence[tuple[Known | None, Known | None]]
        known = self._known or [(None, None)] * len(dimensions)
        self._layers = [
            (
                TokenStatistics(self.outliers, self.kept_rows, vision),
                TokenStatistics(self.outliers, self.kept_rows, text),
            )
            for vision, text in known
        ]


def _priorities(document_id: DocumentId, modality: int, count: int) -> Tensor:
    """Numbers in [0, 1) by which tokens enter the sample; they depend on nothing but the document."""
    digest = hashlib.sha256(f"{document_id}\0{modality}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
    return torch.rand(count, generator=generator, dtype=torch.float64)


def _jackknife(values: Sequence[float]) -> float | None:
    """Standard error from delete-a-group replicates."""
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    spread = sum((value - mean) ** 2 for value in values)
    return math.sqrt((len(values) - 1) / len(values) * spread)
