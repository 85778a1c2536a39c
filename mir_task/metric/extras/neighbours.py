"""`neighbours`: overlap of documents' nearest neighbours by their vision and by their text.

Definition: mutual k-nearest-neighbour alignment of Huh et al. 2024 (arXiv 2405.07987),
k = 10: each document's neighbours are the others of largest cosine, once between mean
vision rows and once between mean text rows; the figure is the mean share that both have in common.
Chance is k / (n - 1) of n documents. Cost: a mean row of each document and modality in a layer, and all
cosines between documents.
"""

import torch
from torch import Tensor
from torch.nn import functional

from mir_task.metric.extras.offer import Figures, Offer
from mir_task.result import jackknife_stderr

NEIGHBOURS = 10
"""k."""


def compute(layer: Offer) -> Figures:
    """`neighbour_overlap` of a layer and its standard error by the delete-one-document jackknife."""
    value, left_out = neighbour_overlap(*layer.means(), NEIGHBOURS)
    error = jackknife_stderr(left_out) if left_out else None
    return {"neighbour_overlap": value, "neighbour_overlap_stderr": error}


def neighbour_overlap(a: Tensor, b: Tensor, k: int) -> tuple[float | None, list[float]]:
    """Mean share of k nearest neighbours by cosine that paired features have in common.

    Args:
        a: [n, d].
        b: [n, e].
        k: neighbours.

    Returns:
        The share, between 0 and 1, and that without each pair. None and nothing of 2 k + 1 pairs and
        fewer, where half of it and more would be chance.
    """
    n = len(a)
    if n <= 2 * k + 1:
        return None, []
    (near, spare), (other_near, other_spare) = (_neighbours(x.double(), k) for x in (a, b))
    common = (near * other_near).sum(1)
    # Without document i, the next neighbour takes its place wherever i was one: [document, i].
    of_both = near * other_near
    moves = near * other_near.gather(1, spare) + other_near * near.gather(1, other_spare)
    moves += of_both * ((spare == other_spare).double() - 1)
    left_out = (common.sum() - common + moves.sum(0)) / (k * (n - 1))
    return float(common.mean()) / k, left_out.tolist()


def _neighbours(features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Of each document: 1.0 at its k nearest [n, n], and the number of the next one [n, 1]."""
    unit = functional.normalize(features)
    cosines = (unit @ unit.T).fill_diagonal_(-2)
    nearest = cosines.topk(k + 1).indices
    return torch.zeros_like(cosines).scatter_(1, nearest[:, :k], 1), nearest[:, k:]
