"""First pass over the tokens: norms, a sample, and rows while there is room, lowest layers first."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mir_task.errors import MIRError
from mir_task.statistics.memory import GIB, Pieces, free
from mir_task.statistics.sample import SAMPLE, SampleChoice, priorities

Pair = Sequence[Tensor]
"""Of vision and of text tokens."""


class Tokens:
    """Tokens of one layer and modality, an entry a document."""

    def __init__(self) -> None:
        self.norms: list[Tensor] = []
        """float64 [n] each, on the rows' device."""
        self.rows: list[Tensor] | None = []
        """[n, d] each, of this object alone; None once there was no room for them."""
        self.like: Tensor | None = None
        """No rows [0, d], of the dtype and on the device of those that came first."""
        self.nbytes = 0
        """Memory of rows or sample."""
        self._sample: Tensor | None = None
        self._pieces = Pieces()

    def add(self, rows: Tensor, norms: Tensor, slots: Tensor, chosen: Tensor) -> None:
        """Count one document.

        Args:
            rows: [n, d], which are copied.
            norms: [n].
            slots: of the sample, on the rows' device, that go to some of the rows.
            chosen: which rows these are.
        """
        self.like = rows.new_empty(0, rows.shape[1]) if self.like is None else self.like
        self.norms.append(norms.to(self.like.device))
        if self.rows is not None:
            self.rows.append(self._pieces.copied(rows, self.like.device))
            self.nbytes += rows.nbytes
        elif len(slots):
            sample = self._sampled(self.like)
            sample[slots.to(sample.device)] = rows[chosen].to(sample)

    def forget_rows(self, choice: SampleChoice) -> None:
        """Keep no more of the rows than the sample."""
        if self.rows:
            self._sample = self.sample(choice)
        self.rows, self._pieces = None, Pieces()
        self.nbytes = 0 if self._sample is None else self._sample.nbytes

    def sample(self, choice: SampleChoice) -> Tensor | None:
        """Rows [SAMPLE, d] of the sample in their slots, zero in empty ones; None of no document."""
        if self.like is None or self.rows is None:
            return None if self.like is None else self._sampled(self.like)
        sample = self.like.new_zeros(SAMPLE, self.like.shape[1])
        for document, (slots, positions) in choice.of_documents().items():
            rows = self.rows[document]
            sample[slots.to(sample.device)] = rows[positions.to(sample.device)].to(sample.dtype)
        return sample

    def merge(self, other: "Tokens", slots: Tensor, chosen: Tensor) -> None:
        """Count the documents of another, where both keep rows or neither does.

        Args:
            other: the other, whose rows are shared.
            slots: of the sample that go to tokens of the other's sample.
            chosen: the slots where these stood.
        """
        self.like = other.like if self.like is None else self.like
        self.norms += other.norms
        if self.rows is not None:
            self.rows += other.rows or []
            self.nbytes += other.nbytes
        elif other._sample is not None:
            sample = self._sampled(other._sample)
            sample[slots.to(sample.device)] = other._sample[chosen.to(other._sample.device)].to(sample)

    def only(self, documents: Sequence[int]) -> "Tokens":
        """Some of the documents, whose rows are kept and shared."""
        part = Tokens()
        part.like = self.like
        part.norms = [self.norms[document] for document in documents]
        part.rows = [(self.rows or [])[document] for document in documents]
        return part

    def _sampled(self, like: Tensor) -> Tensor:
        """The sample that takes the place of the rows."""
        if self._sample is None:
            self._sample = like.new_zeros(SAMPLE, like.shape[1])
            self.nbytes = self._sample.nbytes
        return self._sample


class FirstPass:
    """Vision and text tokens of all layers.

    Args:
        memory: GiB for rows on each device, or by device; half of what is free when the first document
            comes if None.
    """

    def __init__(self, memory: float | Mapping[torch.device, float] | None) -> None:
        self.memory = memory
        self.layers: dict[int, list[Tokens]] = {}
        """By layer number."""
        self.choices = [SampleChoice(), SampleChoice()]
        """Of the samples of vision and of text tokens."""
        self.documents = 0
        self._room: dict[torch.device, float] = {}

    def layer(self, number: int) -> list[Tokens]:
        """Vision and text tokens of the layer of that number; empty where there was no document."""
        return self.layers.setdefault(number, [Tokens(), Tokens()])

    def kept(self) -> list[int]:
        """Numbers of the layers whose rows are kept."""
        return sorted(n for n, pair in self.layers.items() if all(of.rows is not None for of in pair))

    def add(self, document_id: str | int, layers: Mapping[int, tuple[Pair, Pair]]) -> None:
        """Count one document: rows [n, d] and norms [n] of vision and text tokens by layer number."""
        coming = dict[torch.device, dict[int, int]]()
        for number, (rows, _) in layers.items():
            like = self.layer(number)[1].like
            device = rows[1].device if like is None else like.device
            coming.setdefault(device, {})[number] = sum(part.nbytes for part in rows)
        for device, sizes in coming.items():
            self._make_room(device, sizes)
        rows, _ = next(iter(layers.values()))
        entering = list(self._entering(document_id, [len(part) for part in rows]))
        devices = {part.device for rows, _ in layers.values() for part in rows}
        places = {device: [[x.to(device) for x in of] for of in entering] for device in devices}
        for number, (rows, norms) in layers.items():
            for n, tokens in enumerate(self.layer(number)):
                tokens.add(rows[n], norms[n], *places[rows[n].device][n])

    def merge(self, other: "FirstPass") -> None:
        """Count all documents of another, whose rows are shared."""
        for number, theirs in other.layers.items():
            if any(tokens.rows is None for tokens in theirs):
                self._forget_rows(number)
        both = zip(self.choices, other.choices, strict=True)
        moved = [own.merge(more, self.documents) for own, more in both]
        self.documents += other.documents
        for number, theirs in other.layers.items():
            for n, (own, more) in enumerate(zip(self.layer(number), theirs, strict=True)):
                if own.rows is None and more.rows is not None:
                    more = more.only(range(len(more.rows)))
                    more.forget_rows(other.choices[n])
                own.merge(more, *moved[n])
        for device in {pair[1].like.device for pair in self.layers.values() if pair[1].like is not None}:
            self._make_room(device, {})

    def only(self, documents: Mapping[int, str | int]) -> "FirstPass":
        """Some documents, ids by number, of the layers that are `kept`; rows are shared."""
        part = FirstPass(self.memory)
        for number in self.kept():
            part.layers[number] = [tokens.only(list(documents)) for tokens in self.layers[number]]
        for number, document_id in documents.items():
            of_layer = next(iter(self.layers.values()))
            list(part._entering(document_id, [len(tokens.norms[number]) for tokens in of_layer]))
        return part

    def _entering(
        self, document_id: str | int, counts: Sequence[int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Slots of the samples that go to tokens of a document, and which these are."""
        for modality, (choice, count) in enumerate(zip(self.choices, counts, strict=True)):
            hashes = priorities(document_id, modality, count)
            yield choice.offer(hashes, self.documents, np.arange(count))
        self.documents += 1

    def _make_room(self, device: torch.device, coming: Mapping[int, int]) -> None:
        """Forget rows of the highest layers on a device, so that bytes that come have room."""
        if device not in self._room:
            by_device = self.memory if isinstance(self.memory, Mapping) else {device: self.memory}
            if device not in by_device:
                have = ", ".join(map(str, by_device))
                raise MIRError(f"rows came on {device}, and memory has GiB for {have} only")
            memory = by_device[device]
            self._room[device] = free(device) / 2 if memory is None else memory * GIB
        needed = {}
        for number, pair in self.layers.items():
            if number in coming or (pair[1].like is not None and pair[1].like.device == device):
                more = coming.get(number, 0) if pair[1].rows is not None else 0
                needed[number] = sum(tokens.nbytes for tokens in pair) + more
        for number in sorted(needed, reverse=True):
            if sum(needed.values()) <= self._room[device]:
                break
            self._forget_rows(number)
            needed[number] = sum(tokens.nbytes for tokens in self.layers[number])

    def _forget_rows(self, number: int) -> None:
        for tokens, choice in zip(self.layer(number), self.choices, strict=True):
            if tokens.rows is not None:
                tokens.forget_rows(choice)
