"""What two passes over the tokens of one layer and modality keep of them.

The first keeps the norm of every token, a sample of rows that does not depend on the order or split of
the documents, and the rows themselves while there is room (`FirstPass`). Known after it, over all
processes, are the bounds of the 3-sigma rule, a centre for sums and thresholds around the medians
(`Known`). The second reads the rows, from memory where they were kept and from the forwards run again
elsewhere, and adds up second moments and counts by group of documents (`SecondPass`).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mir_task.metric import Modality
from mir_task.statistics import medians
from mir_task.statistics.moments import Moments

SAMPLE = 1024
"""Rows in the sample of all tokens."""
# Bytes of a piece of memory on the host. The C library returns pieces of this size to the system when
# they are freed, and takes no more of the memory than what is written to.
_PIECE = 2**26
FOLDED_AT_ONCE = 4096
"""Rows of a second pass that wait to be folded into the moments, for products of a size that is fast."""


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

    @property
    def tokens(self) -> int:
        """All tokens."""
        return sum(group.tokens for group in self.groups.values())

    @property
    def outliers(self) -> int:
        """Tokens out of bounds."""
        return sum(group.outliers for group in self.groups.values())

    def without(self, left_out: int | None) -> Group:
        """All tokens but those of one group."""
        kept = [part for group, part in self.groups.items() if group != left_out]
        return (
            Group(*(sum(numbers) for numbers in zip(*kept, strict=True))) if kept else Group(0, 0, 0.0)
        )


class SampleChoice:
    """Which tokens are in the sample of one modality: those of lowest priority, `SAMPLE` of them.

    Priorities are hashes of document and position, so they are the same in every layer.
    """

    def __init__(self) -> None:
        self.priorities: NDArray[np.float64] = np.full(SAMPLE, np.inf)
        """Of the token in each slot; infinite where there is none."""
        self.documents: NDArray[np.int64] = np.zeros(SAMPLE, np.int64)
        """Number of its document."""
        self.positions: NDArray[np.int64] = np.zeros(SAMPLE, np.int64)
        """Its position among the document's tokens of the modality."""

    def offer(
        self,
        priorities: NDArray[np.float64],
        documents: NDArray[np.int64] | int,
        positions: NDArray[np.int64],
    ) -> tuple[Tensor, Tensor]:
        """Take in tokens of low priority.

        Args:
            priorities: of some tokens [n].
            documents: their document's number, or each one's [n].
            positions: in it [n].

        Returns:
            The slots [k] that tokens get, and which of the tokens these are [k].
        """
        both = np.concatenate([self.priorities, priorities])
        lowest = np.argpartition(both, SAMPLE - 1)[:SAMPLE]
        taken = np.sort(lowest[lowest >= SAMPLE]) - SAMPLE
        taken = taken[np.isfinite(priorities[taken])]
        free = np.setdiff1d(np.arange(SAMPLE), lowest[lowest < SAMPLE])[: len(taken)]
        self.priorities[free] = priorities[taken]
        self.documents[free] = np.broadcast_to(documents, len(priorities))[taken]
        self.positions[free] = positions[taken]
        return torch.from_numpy(free), torch.from_numpy(taken)

    def copy(self) -> "SampleChoice":
        """The same tokens."""
        other = SampleChoice()
        for name in ("priorities", "documents", "positions"):
            setattr(other, name, getattr(self, name).copy())
        return other

    def of_documents(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Slots [k] and positions [k] by the number of the document."""
        filled = np.flatnonzero(np.isfinite(self.priorities))
        return {
            int(document): (torch.from_numpy(slots), torch.from_numpy(self.positions[slots]))
            for document in np.unique(self.documents[filled])
            if len(slots := filled[self.documents[filled] == document])
        }


class Pieces:
    """Copies of tensors that stay, in large pieces of memory on the host.

    Among small ones that stay, memory that callers take and free for large tensors is never whole again:
    the process grows by all that ever came.
    """

    def __init__(self) -> None:
        self._unused: Tensor | None = None

    def copied(self, tensor: Tensor, device: torch.device) -> Tensor:
        """A copy of a [n, ...] on a device."""
        if device.type != "cpu":
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=device).copy_(tensor)
        unused = self._unused
        if (
            unused is None
            or (unused.dtype, unused.shape[1:]) != (tensor.dtype, tensor.shape[1:])
            or len(unused) < len(tensor)
        ):
            most = max(len(tensor), _PIECE // max(tensor[:1].nbytes, 1))
            unused = torch.empty(most, *tensor.shape[1:], dtype=tensor.dtype)
        own, self._unused = unused[: len(tensor)], unused[len(tensor) :]
        return own.copy_(tensor)


class FirstPass:
    """Tokens of one layer and modality, an entry a document."""

    def __init__(self) -> None:
        self.norms: list[Tensor] = []
        """float64 [n] each, on the rows' device."""
        self.rows: list[Tensor] | None = []
        """[n, d] each; None once there was no room for them."""
        self.like: Tensor | None = None
        """No rows [0, d], of the dtype and on the device of those that came."""
        self.nbytes = 0
        """Memory of rows or sample."""
        self._sample: Tensor | None = None
        self._pieces = Pieces()

    def copied(self, rows: Tensor) -> Tensor:
        """Rows [n, d] in memory of this object, on the device of those that came first.

        Where none of them are kept, the rows themselves.
        """
        device = rows.device if self.like is None else self.like.device
        return rows.to(device) if self.rows is None else self._pieces.copied(rows, device)

    def add(self, rows: Tensor, norms: Tensor, slots: Tensor, chosen: Tensor) -> None:
        """Count one document.

        Args:
            rows: [n, d], as `copied` gives them.
            norms: [n].
            slots: of the sample, on the rows' device, that go to some of the rows.
            chosen: which rows these are.
        """
        self.like = rows.new_empty(0, rows.shape[1]) if self.like is None else self.like
        self.norms.append(norms)
        if self.rows is not None:
            self.rows.append(rows)
            self.nbytes += rows.nbytes
        elif len(slots):
            sample = self.sample_slots(rows)
            sample[slots] = rows[chosen].to(sample.dtype)

    def forget_rows(self, choice: SampleChoice) -> None:
        """Keep no more of the rows than the sample."""
        if self.rows:
            self._sample = self.sample(choice, self.rows[0])
        self._pieces = Pieces()
        self.rows, self.nbytes = None, 0 if self._sample is None else self._sample.nbytes

    def sample(self, choice: SampleChoice, like: Tensor) -> Tensor:
        """Rows [SAMPLE, d] of the sample in their slots, zero where this object has none.

        Args:
            choice: of the sample.
            like: rows [n, d], for where there are none.
        """
        if self.rows is None:
            return self.sample_slots(like)
        sample = like.new_zeros(SAMPLE, like.shape[1])
        for document, (slots, positions) in choice.of_documents().items():
            rows = self.rows[document]
            sample[slots.to(rows.device)] = rows[positions.to(rows.device)].to(sample.dtype)
        return sample

    def merge(self, other: "FirstPass", slots: Tensor, chosen: Tensor) -> None:
        """Count the documents of another, where both keep rows or neither does.

        Args:
            other: the other.
            slots: of the sample that go to tokens of the other's sample.
            chosen: the slots where these stood.
        """
        self.like = other.like if self.like is None else self.like
        self.norms += other.norms
        if self.rows is not None:
            assert other.rows is not None
            self.rows += other.rows
            self.nbytes += other.nbytes
        elif other._sample is not None:
            sample = self.sample_slots(other._sample)
            sample[slots.to(sample.device)] = other._sample[chosen.to(sample.device)]

    def only(self, documents: Sequence[int]) -> "FirstPass":
        """Some of the documents, whose rows are kept; rows and norms are shared."""
        assert self.rows is not None
        part = FirstPass()
        part.like = self.like
        part.norms = [self.norms[document] for document in documents]
        part.rows = [self.rows[document] for document in documents]
        return part

    def sample_slots(self, like: Tensor) -> Tensor:
        """Rows [SAMPLE, d] of the sample that take the place of the rows."""
        if self._sample is None:
            self._sample = like.new_zeros(SAMPLE, like.shape[1])
            self.nbytes = self._sample.nbytes
        return self._sample


class SecondPass:
    """Sums over the tokens of one layer and modality, by group of documents.

    Args:
        known: of all tokens after the first pass.
        rule: of outliers, "replace" or "drop".
        groups: of documents.
        products: dtype in which rows are multiplied.
        exact: whether medians are found by `medians` from rows in memory, and so not counted here.
    """

    def __init__(
        self, known: Known, rule: str, groups: int, products: torch.dtype, *, exact: bool
    ) -> None:
        self.known = known
        self.replaces = rule == "replace" and known.outliers > 0
        self.moments = Moments(known.centre, groups, products)
        self.below: Tensor | None = None
        """Tokens at or below the thresholds: int64 [q, d]."""
        if self.replaces and not exact:
            self.below = torch.zeros_like(known.thresholds, dtype=torch.int64)
        self.tokens = 0
        self._waiting: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._rows_waiting = 0

    def add(self, rows: Tensor, norms: Tensor, group: int) -> None:
        """Count rows [n, d] and their norms [n] of one document."""
        self.tokens += len(rows)
        self._waiting.setdefault(group, []).append((rows, norms))
        self._rows_waiting += len(rows)
        if self._rows_waiting >= FOLDED_AT_ONCE:
            self.fold()

    def copied(self, rows: Tensor) -> Tensor:
        """Rows [n, d] in memory of their own, on the device of the sums."""
        return torch.empty(rows.shape, dtype=rows.dtype, device=self.moments.centre.device).copy_(rows)

    def fold(self) -> None:
        """Fold the rows that wait into the sums."""
        for group, parts in self._waiting.items():
            rows, norms = (torch.cat(column) for column in zip(*parts, strict=True))
            self.moments.add(group, rows, self.known.bounds.inside(norms))
            if self.below is not None:
                self.below += medians.count_at_most(rows, self.known.thresholds)
        self._waiting, self._rows_waiting = {}, 0

    def sums(self) -> list[Tensor]:
        """All that processes add up."""
        self.fold()
        return [self.moments.numbers, *(() if self.below is None else (self.below,))]

    def replace_outliers(self, middle: Tensor | None = None) -> None:
        """Count the medians [d] once for each outlier; those of the counts where not given."""
        if not self.replaces:
            return
        if middle is None:
            assert self.below is not None
            middle = medians.of_counts(self.below, self.known.tokens, self.known.thresholds)
        counts = self.moments.counts()
        for group, part in self.known.groups.items():
            self.moments.add_repeated(group, middle.to(self.moments.centre), part.tokens - counts[group])

    def modality(self, left_out: int | None = None) -> Modality:
        """All tokens, or all but those of one group, with the outlier rule applied."""
        whole = self.known.without(left_out)
        return Modality(
            self.moments.gaussian(left_out),
            tokens=whole.tokens,
            outliers=whole.outliers,
            norm=whole.norms / whole.tokens if whole.tokens else math.nan,
        )


def by_group(norms: Iterable[Tensor], groups: Iterable[int]) -> dict[int, Tensor]:
    """Norms [n] of each group on the CPU, from those of each document and its group."""
    parts: dict[int, list[Tensor]] = {}
    for of_document, group in zip(norms, groups, strict=True):
        parts.setdefault(group, []).append(of_document)
    return {group: torch.cat(of_group).cpu() for group, of_group in parts.items()}
