"""Token statistics of one layer that accumulate in bounded memory, merge, and finalise.

Of each modality they keep the norm of every token (8 bytes), and the tokens' rows as long as
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

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mir_task import integers, tiles
from mir_task.diagnostics import linear_cka, mmd2
from mir_task.frechet import Gaussian
from mir_task.medians import MedianCounts, medians, reached
from mir_task.metric import (
    MeasuredLayer,
    Modality,
    check_enough,
    layer_result,
    text_centric_terms,
)
from mir_task.precision import full_precision

SAMPLE = 1024
"""Rows in the sample of all tokens."""
# Rows among which the sample is chosen anew.
_OFFERED = SAMPLE * 9 // 8
# A median of the sample is off by 0.04 standard deviations, and as many rows as there are outliers are
# put there. This share of all numbers may be before a second pass is asked for.
_SAMPLED = 0.01
# Rows of an accelerator that the sample and the counts see at a time: many small steps take it long.
_AT_ONCE = 8192
# Rows that may wait at least, whatever a covariance takes.
_WAIT = 2048
# Tokens this many standard deviations from the median wait for the bounds (at 3) to settle: in the
# first of these bands that holds few enough. Those beyond it are let go of, as outliers.
_BANDS = (
    (2.0, math.inf),
    (2.5, math.inf),
    (2.8, math.inf),
    (2.5, 3.7),
    (2.8, 3.2),
    (3.0, 3.0),
)
# Bounds are estimated anew when there are this many times more tokens.
_GROWTH = 1.1
_CHUNK = 4096


class Bounds(NamedTuple):
    """Norms between which a token is no outlier: median - 3 std and median + 3 std."""

    low: float
    high: float

    @classmethod
    def of(cls, norms: Sequence[Tensor], *deviations: float) -> "list[Bounds]":
        """From parts of the norms [n] of all tokens: lower median and some numbers of unbiased stds."""
        count = sum(map(len, norms))
        mean = sum(float(part.sum(dtype=torch.float64)) for part in norms) / count
        squares = sum(float((part.double() - mean).square().sum()) for part in norms)
        middle, std = float(torch.cat(list(norms)).median()), math.sqrt(squares / max(count - 1, 1))
        return [cls(middle - number * std, middle + number * std) for number in deviations]

    def outside(self, norms: Tensor) -> Tensor:
        """True where a norm [n] is out of bounds."""
        norms = norms.double()
        return (norms < self.low) | (norms > self.high)

    def count_outside(self, norms: Iterable[Tensor]) -> int:
        """How many norms are out of bounds, of parts [n] of them."""
        return sum(int(self.outside(part).sum()) for part in norms)


def _blocks(size: int) -> Iterator[tuple[int, int]]:
    """Columns (first, end) of the blocks in which the lower half of a [size, size] is kept."""
    # More of them hold less of the upper half, but products narrower than 256 are slow.
    blocks = min(max(size // 256, 4), 8)
    # No tile of sums lies in two of them.
    firsts = (size * n // blocks // tiles.WIDTH * tiles.WIDTH for n in range(blocks))
    return itertools.pairwise([*firsts, size])


class Moments:
    """Count, mean [d] and centred second moment [d, d] of rows, in float64."""

    def __init__(self, count: int, mean: Tensor, scatter: Sequence[Tensor]) -> None:
        self.count = count
        self.mean = mean
        self.scatter = scatter
        """Lower half of sum of (x - mean)(x - mean)^T: blocks of columns, from the diagonal down."""

    @classmethod
    def of_none(cls, like: Tensor) -> "Moments":
        """Of no rows, of the size and on the device of these [n, d]."""
        mean = torch.zeros(like.shape[1], dtype=torch.float64, device=like.device)
        return cls(0, mean, [mean.new_zeros(len(mean) - i, j - i) for i, j in _blocks(len(mean))])

    @full_precision()
    def add(self, rows: Tensor, places: Tensor) -> None:
        """Count those of the rows [n, d] that stand at some places [k].

        Products of rows up to float32 are sums of integers where the processor is made for that
        (`mir_task.integers`), or else summed in float32, a few thousand rows at a time and after
        centring on the mean of the first of them: what a model computed in float32 is not more precise.
        Those of float64 rows are summed in float64.
        """
        if not len(places):
            return
        if integers.suit(rows):
            blocks = list(_blocks(len(self.mean)))
            self.count = integers.add(rows, places, self.count, self.mean, self.scatter, blocks)
            return
        rows = _at(rows, places)
        dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
        centre = rows[:_CHUNK].to(dtype).mean(0)
        shift = torch.zeros_like(self.mean)
        for chunk in torch.split(rows, _CHUNK):
            centred = chunk.to(dtype) - centre
            shift += centred.sum(0)
            for block, (start, end) in zip(self.scatter, _blocks(len(centre)), strict=True):
                block += centred[:, start:].T @ centred[:, start:end]
        shift /= len(rows)
        self._add_outer(shift, -len(rows))
        self._count_in(centre + shift, len(rows))

    def add_repeated(self, row: Tensor, count: int) -> None:
        """Count one row [d] so many times."""
        if count:
            self._count_in(row.double(), count)

    def copy(self) -> "Moments":
        """With tensors of its own."""
        return Moments(self.count, self.mean.clone(), [block.clone() for block in self.scatter])

    def merge(self, other: "Moments") -> None:
        """Add the rows of another (Chan, Golub and LeVeque 1979)."""
        if not other.count:
            return
        for block, more in zip(self.scatter, other.scatter, strict=True):
            block += more
        self._count_in(other.mean, other.count)

    def _count_in(self, mean: Tensor, count: int) -> None:
        """Count rows of that mean, whose sum of outer products about it is added already."""
        total = self.count + count
        delta = mean - self.mean
        self._add_outer(delta, self.count * count / total)
        self.mean += delta * (count / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """Mean and covariance (n - 1)."""
        size = len(self.mean)
        covariance = self.mean.new_empty(size, size)
        for block, (start, end) in zip(self.scatter, _blocks(size), strict=True):
            covariance[start:, start:end] = block / (self.count - 1)
            covariance[start:end, end:] = covariance[end:, start:end].T
        return Gaussian(self.mean, covariance, None)

    def _add_outer(self, vector: Tensor, times: float) -> None:
        for block, (start, end) in zip(self.scatter, _blocks(len(vector)), strict=True):
            block.addr_(vector[start:], vector[start:end], alpha=times)


def merged(parts: Iterable[Moments]) -> Moments:
    """One Moments of several, which stay as they are; of a single one itself."""
    first, *others = parts
    whole = first.copy() if others else first
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
            Gaussian.from_tokens(_at(self.rows, _places(self.row_groups != absent))),
            tokens=len(norms),
            outliers=int((self.outlier_groups != absent).sum()),
            norm=float(norms.mean()),
        )


@dataclass
class _FinishedMoments:
    """By group of documents."""

    moments: dict[int, Moments]
    tokens: dict[int, int]
    norms: dict[int, float]
    """Their sum."""
    outliers: dict[int, int]

    def modality(self, left_out: int | None) -> Modality:
        kept = [group for group in self.tokens if group != left_out]
        tokens = sum(self.tokens[group] for group in kept)
        return Modality(
            merged(self.moments[group] for group in kept if group in self.moments).gaussian(),
            tokens=tokens,
            outliers=sum(self.outliers[group] for group in kept),
            norm=sum(self.norms[group] for group in kept) / tokens,
        )


class _Tokens(NamedTuple):
    """Some tokens of one layer and modality."""

    rows: Tensor
    norms: Tensor
    """Like `groups` on the CPU, where to choose tokens does not wait for an accelerator."""
    groups: Tensor

    def at(self, places: Tensor) -> "_Tokens":
        return _Tokens(*(_at(part, places) for part in self))


class Known(NamedTuple):
    """What a first pass over the tokens leaves to a second."""

    bounds: Bounds
    thresholds: Tensor | None
    """For the medians, [q, d] on the CPU; None with the rule "drop"."""


KnownLayer = tuple[Known, Known]
"""Of the vision and of the text tokens."""


class Sample:
    """The rows of lowest priority among all that were offered, `SAMPLE` of them at most."""

    def __init__(self) -> None:
        # In one piece from the start: small ones, that stay for long, would scatter over the memory.
        self._rows: Tensor | None = None
        # Infinite where there is no row.
        self._priorities = torch.empty(0)
        self._free = torch.empty(0)
        self._cutoff = math.inf

    def offer(self, rows: Tensor, priorities: Tensor) -> None:
        """Take in those of the rows [n, d] that may belong to the sample, by their priorities [n]."""
        if self._rows is None:
            self._rows = rows.new_empty(_OFFERED, rows.shape[1])
            self._priorities = priorities.new_full((_OFFERED,), math.inf)
            self._free = torch.arange(_OFFERED)
        for places in torch.split(_places(priorities < self._cutoff), _OFFERED - SAMPLE):
            if len(places) > len(self._free):
                self._choose()
            own, self._free = self._free[: len(places)], self._free[len(places) :]
            self._rows[own.to(rows.device)] = _at(rows, places)
            self._priorities[own] = priorities[places]

    def lowest(self) -> tuple[Tensor, Tensor]:
        """The rows [n, d] and their priorities [n]."""
        assert self._rows is not None
        priorities, places = self._priorities.topk(SAMPLE, largest=False)
        there = priorities.isfinite()
        return _at(self._rows, places[there]), priorities[there]

    def _choose(self) -> None:
        highest = self._priorities.topk(_OFFERED - SAMPLE)
        self._free, self._cutoff = highest.indices, float(highest.values.min())
        self._priorities[self._free] = math.inf


def _default_capacity(size: int, itemsize: int) -> int:
    """Rows [size] that may wait: as many as take the memory of one float64 covariance."""
    return max(8 * size // itemsize, _WAIT)


def bytes_at_most(size: int, itemsize: int, groups: int) -> int:
    """Memory that one layer's statistics of both modalities take at most, beside 8 bytes a token.

    Args:
        size: dimensions of the hidden states.
        itemsize: bytes a number of them.
        groups: of documents.
    """
    rows = (_default_capacity(size, itemsize) + _OFFERED) * size * itemsize
    moments = max(groups, 1) * 8 * sum((size - i) * (j - i) for i, j in _blocks(size))
    return 2 * (rows + moments)


class TokenStatistics:
    """Statistics of the tokens of one layer and modality.

    Args:
        rule: of outliers, "replace" or "drop".
        capacity: rows that may wait; worked out from the first rows where None.
        known: what a first pass over the same tokens found.
        keep_sample: have a sample whatever the rule is.
    """

    def __init__(
        self,
        rule: str,
        capacity: int | None,
        known: Known | None = None,
        keep_sample: bool = False,
    ) -> None:
        self.rule = rule
        self.keep_sample = keep_sample or rule == "replace"
        self.capacity = capacity
        self.bounds = known.bounds if known else None
        self._thresholds = known.thresholds if known else None
        self._counts: list[MedianCounts] = []
        self.count = 0
        self.moments: dict[int, Moments] = {}
        self._norms: dict[int, list[Tensor]] = {}
        self._waiting: list[_Tokens] = []
        self._waiting_count = 0
        # Priorities of the last waiting rows, which the sample and the counts have not seen.
        self._new: list[Tensor] = []
        self._discarded = dict[int, int]()
        # Norms of folded tokens lie between these, and those of discarded ones beyond the others.
        self._folded = Bounds(math.inf, -math.inf)
        self._discarded_norms = Bounds(-math.inf, math.inf)
        self._sample = Sample()
        self._estimate: tuple[int, list[tuple[Bounds, Bounds]]] = (0, [])

    def add(self, rows: Tensor, norms: Tensor, group: int, priorities: Tensor) -> None:
        """Count rows [n, d] of one document.

        Args:
            rows: in any dtype.
            norms: [n] on the CPU, the rows' L2 norms.
            group: of the document.
            priorities: [n] on the CPU, the hashes by which rows enter the sample.
        """
        if self.capacity is None:
            self.capacity = _default_capacity(rows.shape[1], rows.element_size())
        rows = rows.contiguous()  # as compiled loops want them
        groups = torch.full((len(rows),), group, dtype=torch.int16)
        _append(self._norms.setdefault(group, []), norms)
        self.count += len(rows)
        self._wait(_Tokens(rows, norms.double(), groups))
        self._new.append(priorities)
        if rows.device.type == "cpu" or sum(map(len, self._new)) > _AT_ONCE:
            self._see_new()
        if self._waiting_count > self.capacity:
            self._settle()

    def _see_new(self) -> None:
        """Have the sample and the counts see the rows that came since the last time."""
        if not self._new:
            return
        new = [tokens.rows for tokens in self._waiting[-len(self._new) :]]
        rows, priorities = (
            torch.cat(parts) if len(parts) > 1 else parts[0] for parts in (new, self._new)
        )
        self._new = []
        if self.keep_sample:
            self._sample.offer(rows, priorities)
        if self.rule == "replace":
            if self._thresholds is not None and not self._counts:
                self._counts.append(MedianCounts(self._thresholds.to(rows.device)))
            if self._counts:
                self._counts[0].count(rows)

    def merge(self, other: "TokenStatistics") -> None:
        """Count the tokens of another."""
        self._see_new()
        other._see_new()
        self.capacity = self.capacity or other.capacity
        self.count += other.count
        for group, norms in other._norms.items():
            for part in norms:
                _append(self._norms.setdefault(group, []), part)
        for group, moments in other.moments.items():
            if group in self.moments:
                self.moments[group].merge(moments)
            else:
                self.moments[group] = moments.copy()
        for group, count in other._discarded.items():
            self._discarded[group] = self._discarded.get(group, 0) + count
        self._folded = Bounds(
            min(self._folded.low, other._folded.low), max(self._folded.high, other._folded.high)
        )
        self._discarded_norms = Bounds(
            max(self._discarded_norms.low, other._discarded_norms.low),
            min(self._discarded_norms.high, other._discarded_norms.high),
        )
        if other.keep_sample and other.count:
            self._sample.offer(*other._sample.lowest())
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

    def norms(self) -> list[Tensor]:
        """Norms of all tokens, in parts [n]."""
        return [norms for group in self._norms.values() for norms in group]

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
        if not self.moments and not self._discarded:
            return False
        self._see_new()
        if self.late():
            return True
        if not self._counts or self.bounds is not None or not self.outlier_count():
            return False
        sampled = float((~reached(self._counts)).double().mean())
        return sampled * self.outlier_count() / self.count > _SAMPLED

    def outlier_count(self) -> int:
        """Outliers among all tokens."""
        return self.final_bounds().count_outside(self.norms())

    def known(self) -> Known:
        """What a second pass over the same tokens needs."""
        thresholds = None
        if self.rule == "replace" and self.count:
            self._see_new()
            thresholds = MedianCounts.around(self._sample.lowest()[0]).thresholds
        return Known(self.final_bounds(), None if thresholds is None else thresholds.cpu())

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
        inside, outside = waiting.at(_places(~out)), waiting.at(_places(out))
        tokens = {group: sum(map(len, parts)) for group, parts in self._norms.items()}
        norms = {
            group: sum(float(part.sum(dtype=torch.float64)) for part in parts)
            for group, parts in self._norms.items()
        }
        outliers = {group: bounds.count_outside(parts) for group, parts in self._norms.items()}
        middle = self._medians() if self.rule == "replace" and any(outliers.values()) else None
        if not self.moments and self.count < inside.rows.shape[1]:
            rows, row_groups = inside.rows.double(), inside.groups
            if middle is not None:
                rows = torch.cat([rows, middle.double().expand(len(outside.rows), -1)])
                row_groups = torch.cat([row_groups, outside.groups])
            return _FinishedRows(rows, row_groups, waiting.norms, waiting.groups, outside.groups)
        moments = {group: part.copy() for group, part in self.moments.items()}
        # Rows that were all kept are few, so float64 costs little.
        rows = inside.rows if self.moments else inside.rows.double()
        for group in tokens:
            if group not in moments:
                moments[group] = Moments.of_none(rows)
            moments[group].add(rows, _places(inside.groups == group))
            if middle is not None:
                replaced = int((outside.groups == group).sum()) + self._discarded.get(group, 0)
                moments[group].add_repeated(middle, replaced)
        return _FinishedMoments(moments, tokens, norms, outliers)

    def _wait(self, tokens: _Tokens) -> None:
        self._waiting.append(tokens)
        self._waiting_count += len(tokens.rows)

    def _all_waiting(self) -> _Tokens:
        self._see_new()
        if len(self._waiting) > 1:
            self._waiting = [_Tokens(*map(torch.cat, zip(*self._waiting, strict=True)))]
        return self._waiting[0]

    def _settle(self) -> None:
        """Fold in the rows that are surely inliers, let go of sure outliers, keep the rest waiting."""
        assert self.capacity is not None
        waiting = self._all_waiting()
        rows, norms, groups = waiting
        if self.rule == "replace" and not self._counts:
            shuffled = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
            counts = MedianCounts.around(_at(rows, shuffled[:SAMPLE]))
            counts.count(rows)
            self._counts.append(counts)
        for inner, outer in self._bands():
            inlier, outlier = ~inner.outside(norms), outer.outside(norms)
            if int((~inlier & ~outlier).sum()) <= self.capacity // 2:
                break
        for group in torch.unique(groups[inlier]).tolist():
            if group not in self.moments:
                self.moments[group] = Moments.of_none(rows)
            self.moments[group].add(rows, _places(inlier & (groups == group)))
        if bool(inlier.any()):
            self._folded = Bounds(
                min(self._folded.low, float(norms[inlier].min())),
                max(self._folded.high, float(norms[inlier].max())),
            )
        self._discard(norms[outlier], groups[outlier], middle=(inner.low + inner.high) / 2)
        self._waiting, self._waiting_count = [], 0
        self._wait(waiting.at(_places(~inlier & ~outlier)))

    def _bands(self) -> list[tuple[Bounds, Bounds]]:
        """Bounds inside which a token is taken for no outlier, and outside which for one; wide first."""
        if self.bounds is not None:
            return [(self.bounds, self.bounds)]
        if self.count > _GROWTH * self._estimate[0]:
            ends = Bounds.of(self.norms(), *itertools.chain.from_iterable(_BANDS))
            self._estimate = (self.count, list(zip(ends[::2], ends[1::2], strict=True)))
        return self._estimate[1]

    def _discard(self, norms: Tensor, groups: Tensor, middle: float) -> None:
        for group in torch.unique(groups).tolist():
            self._discarded[group] = self._discarded.get(group, 0) + int((groups == group).sum())
        low, high = norms[norms < middle], norms[norms >= middle]
        self._discarded_norms = Bounds(
            max([self._discarded_norms.low, *low.tolist()]),
            min([self._discarded_norms.high, *high.tolist()]),
        )

    def sampled(self, count: int) -> Tensor:
        """Raw rows [count, d] drawn from all tokens, outliers included; all where there are fewer."""
        self._see_new()
        rows, priorities = self._sample.lowest()
        return rows[priorities.argsort()[:count]].float().cpu()

    def _medians(self) -> Tensor:
        """Lower median of each dimension [d]; of counts and the sample once rows were folded in."""
        waiting = self._all_waiting()
        if len(waiting.rows) == self.count:
            return waiting.rows.median(0).values
        place = waiting.rows.device
        middle, among = medians(self._counts).to(place), reached(self._counts).to(place)
        if bool(among.all()):
            return middle
        sampled = self._sample.lowest()[0].median(0).values
        return torch.where(among, middle, sampled.double())


def _places(mask: Tensor) -> Tensor:
    """Where a mask [n] is true: [k]."""
    return mask.nonzero().squeeze(1)


def _at(part: Tensor, places: Tensor) -> Tensor:
    """Entries of a tensor on any device at places [k]."""
    return part.index_select(0, places.to(part.device))


def _append(parts: list[Tensor], part: Tensor) -> None:
    """Keep parts of falling length, so that there are few however many come."""
    parts.append(part)
    while len(parts) > 1 and len(parts[-1]) >= len(parts[-2]):
        parts[-2:] = [torch.cat(parts[-2:])]


class LayerStatistics:
    """Statistics of the vision and the text tokens of one decoder layer.

    Args:
        rule: of outliers, "replace" or "drop".
        capacity: rows of a modality that may wait; worked out from the first rows where None.
        known: what a first pass over the same tokens found.
        sample_rows: raw rows of a modality that `measured` hands out, `SAMPLE` at most.
        extras: "cka" and "mmd", which `measured` computes.
    """

    def __init__(
        self,
        rule: str,
        capacity: int | None,
        known: KnownLayer | None = None,
        sample_rows: int = 0,
        extras: Collection[str] = (),
    ) -> None:
        vision, text = known or (None, None)
        self.sample_rows = sample_rows
        self.extras = extras
        keep_sample = sample_rows > 0 or "mmd" in extras
        self.vision = TokenStatistics(rule, capacity, vision, keep_sample)
        self.text = TokenStatistics(rule, capacity, text, keep_sample)
        self._means: list[tuple[Tensor, Tensor]] = []

    def merge(self, other: "LayerStatistics") -> None:
        """Count the tokens of another."""
        self.vision.merge(other.vision)
        self.text.merge(other.text)
        self._means += other._means

    def pair(self, vision: Tensor, text: Tensor) -> None:
        """Keep the mean rows of one document's tokens [n, d], where "cka" needs them."""
        if "cka" in self.extras:
            self._means.append((vision.float().mean(0), text.float().mean(0)))

    def needs_second_pass(self) -> bool:
        """Whether bounds or medians moved too far from what rows were folded in by."""
        return self.vision.needs_second_pass() or self.text.needs_second_pass()

    def known(self) -> KnownLayer:
        """What a second pass over the same tokens needs."""
        return self.vision.known(), self.text.known()

    def measured(self, layer: int, left_out: Iterable[int], dtype: torch.dtype) -> MeasuredLayer:
        """The layer's distance, and those without the documents of one group each.

        Args:
            layer: 1-based number of the layer.
            left_out: groups to leave out one at a time. Outliers are those among all tokens.
            dtype: of the covariances when the root is taken.

        Raises:
            MIRError: fewer than 2 tokens of a modality, or text tokens that are all zero.
        """
        check_enough(layer, "vision", self.vision.count)
        check_enough(layer, "text", self.text.count)
        finished = self.vision.finish(), self.text.finish()

        def modalities(group: int | None) -> Iterator[Modality]:
            for tokens in finished:
                modality = tokens.modality(group)
                yield modality._replace(gaussian=modality.gaussian.to(dtype))

        result = layer_result(layer, *modalities(None))
        if "cka" in self.extras:
            result = replace(result, cka=linear_cka(*map(torch.stack, zip(*self._means, strict=True))))
        if "mmd" in self.extras:
            result = replace(result, mmd2=mmd2(self.vision.sampled(SAMPLE), self.text.sampled(SAMPLE)))
        return MeasuredLayer(
            result=result,
            left_out=tuple(text_centric_terms(layer, *modalities(group)).distance for group in left_out),
            late_tokens=self.vision.late_tokens() + self.text.late_tokens(),
            rows=(self.vision.sampled(self.sample_rows), self.text.sampled(self.sample_rows))
            if self.sample_rows
            else None,
        )
