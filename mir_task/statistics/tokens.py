"""What two passes over the tokens of one layer and modality keep of them.

The first keeps the norm of every token, a sample of rows that does not depend on the order or split of
the documents, and the rows themselves while there is room (`FirstPass`). Known after it, over all
processes, are the bounds of the 3-sigma rule, a centre for sums and thresholds around the medians
(`Known`). The second reads the rows, from memory where they were kept and from the forwards run again
elsewhere, and adds up second moments and counts by group of documents (`SecondPass`).
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mir_task.metric import Modality
from mir_task.statistics import medians
from mir_task.statistics.known import Known
from mir_task.statistics.moments import Moments
from mir_task.statistics.sample import SAMPLE, SampleChoice

# Bytes of a piece of memory on the host. The C library returns pieces of this size to the system when
# they are freed, and takes no more of the memory than what is written to.
_PIECE = 2**26
FOLDED_AT_ONCE = 4096
"""Rows of a second pass that wait to be folded into the moments, for products of a size that is fast."""


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
