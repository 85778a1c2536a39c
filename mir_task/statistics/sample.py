"""Which tokens of a modality are in the sample, whatever the order and split of the documents."""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SAMPLE = 1024
"""Rows in the sample of all tokens."""

Numbers = NDArray[np.int64]


class SampleChoice:
    """The tokens of lowest priority, `SAMPLE` of them, and the slots of the sample where they stand.

    Priorities are hashes of document and position, so they are the same in every layer.
    """

    def __init__(self) -> None:
        self.priorities: NDArray[np.float64] = np.full(SAMPLE, np.inf)
        """Of the token in each slot; infinite where there is none."""
        self.documents: Numbers = np.zeros(SAMPLE, np.int64)
        """Number of its document."""
        self.positions: Numbers = np.zeros(SAMPLE, np.int64)
        """Its position among the document's tokens of the modality."""

    def offer(
        self, priorities: NDArray[np.float64], documents: Numbers | int, positions: Numbers
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

    def merge(self, other: "SampleChoice", documents: int) -> tuple[Tensor, Tensor]:
        """Take in those of another, whose documents follow on so many here: slots here and there."""
        filled = np.flatnonzero(np.isfinite(other.priorities))
        slots, chosen = self.offer(
            other.priorities[filled], documents + other.documents[filled], other.positions[filled]
        )
        return slots, torch.from_numpy(filled)[chosen]

    def of_documents(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Slots [k] and positions [k] by the number of the document."""
        filled = np.flatnonzero(np.isfinite(self.priorities))
        return {
            int(document): (torch.from_numpy(slots), torch.from_numpy(self.positions[slots]))
            for document in np.unique(self.documents[filled])
            if len(slots := filled[self.documents[filled] == document])
        }


def priorities(document_id: str | int, modality: int, count: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) by which tokens enter the sample; they depend on nothing but the document."""
    digest = hashlib.sha256(f"{document_id}\0{modality}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
    return torch.rand(count, generator=generator, dtype=torch.float64).numpy()
