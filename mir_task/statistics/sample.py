"""Which tokens of a modality are in the sample, whatever the order and split of the documents."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SAMPLE = 1024
"""Rows in the sample of all tokens."""


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

    def of_documents(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Slots [k] and positions [k] by the number of the document."""
        filled = np.flatnonzero(np.isfinite(self.priorities))
        return {
            int(document): (torch.from_numpy(slots), torch.from_numpy(self.positions[slots]))
            for document in np.unique(self.documents[filled])
            if len(slots := filled[self.documents[filled] == document])
        }


class Entering:
    """Which tokens of a document enter the samples, on the devices where they are needed.

    Args:
        document_id: of the document.
        number: of the document in its meter.
        choices: of the samples of each modality, which take the tokens in.
        counts: of the document's tokens of each modality.
    """

    def __init__(
        self,
        document_id: str | int,
        number: int,
        choices: Sequence[SampleChoice],
        counts: Sequence[int],
    ) -> None:
        host = [
            choice.offer(_priorities(document_id, modality, count), number, np.arange(count))
            for modality, (choice, count) in enumerate(zip(choices, counts, strict=True))
        ]
        self._on = {torch.device("cpu"): host}

    def on(self, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """Slots and tokens of each modality."""
        if device not in self._on:
            host = self._on[torch.device("cpu")]
            self._on[device] = [(slots.to(device), chosen.to(device)) for slots, chosen in host]
        return self._on[device]


def _priorities(document_id: str | int, modality: int, count: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) by which tokens enter the sample; they depend on nothing but the document."""
    digest = hashlib.sha256(f"{document_id}\0{modality}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
    return torch.rand(count, generator=generator, dtype=torch.float64).numpy()


class CommonSample(NamedTuple):
    """Where a process's tokens stand in the sample of all processes together."""

    rows: int
    """Of the common sample."""
    places: Tensor
    slots: Tensor
    """Of this process's own sample that stand there."""

    @classmethod
    def of(cls, priorities: Sequence[NDArray[np.float64]], rank: int) -> "CommonSample":
        """From the priorities [SAMPLE] of every process's sample, for the process of that rank."""
        together = np.concatenate(priorities)
        order = np.argsort(together, kind="stable")[:SAMPLE]
        order = order[np.isfinite(together[order])]
        places = np.flatnonzero(order // SAMPLE == rank)
        return cls(len(order), *(torch.from_numpy(x) for x in (places, order[places] % SAMPLE)))
