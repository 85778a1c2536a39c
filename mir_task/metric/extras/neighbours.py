"""`neighbours`: overlap of documents' nearest neighbours by their vision and by their text.

Definition: mutual k-nearest-neighbour alignment of Huh et al. 2024 (arXiv 2405.07987), k = 10: each
document's neighbours are the others of largest cosine, once between mean vision rows and once between
mean text rows; the figure is the mean share that both have in common. Chance is k / (n - 1) of n
documents. Cost: a mean row of each document and modality in a layer, and all cosines between documents.
No standard error: the jackknife is 1.6 to 1.9 times too large, as lists of neighbours jump, and the
spread over documents, which share neighbours, is 0.6 to 0.9 of the true one.
"""

import torch
from torch import Tensor
from torch.nn import functional

from mir_task.metric.extras.offer import Figures, Offer

NEIGHBOURS = 10
"""k."""


def compute(layer: Offer) -> Figures:
    """`neighbour_overlap` of a layer."""
    return {"neighbour_overlap": neighbour_overlap(*layer.means(), NEIGHBOURS)}


def neighbour_overlap(a: Tensor, b: Tensor, k: int) -> float | None:
    """Mean share of k nearest neighbours by cosine that paired features have in common.

    Args:
        a: [n, d].
        b: [n, e].
        k: neighbours.

    Returns:
        Between 0 and 1; None of 2 k + 1 pairs and fewer, where half of it and more would be chance.
    """
    if len(a) <= 2 * k + 1:
        return None
    one, other = (_neighbours(x.double(), k) for x in (a, b))
    return int((one & other).sum()) / (k * len(a))


def _neighbours(features: Tensor, k: int) -> Tensor:
    """Bool [n, n]: which are the k nearest of each."""
    unit = functional.normalize(features)
    cosines = (unit @ unit.T).fill_diagonal_(-2)
    nearest = cosines.topk(k).indices
    return torch.zeros_like(cosines, dtype=torch.bool).scatter_(1, nearest, value=True)
