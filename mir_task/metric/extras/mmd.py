"""`mmd2`: squared maximum mean discrepancy of vision and text tokens, unbiased.

Definition: Gretton et al. 2012 (JMLR 13), eq. 3, with a Gaussian kernel as wide as the median distance.
Cost: all distances among up to 2048 tokens. No standard error: tokens of one document are not
independent.
"""

import torch
from torch import Tensor

from mir_task.metric.extras.offer import Figures, Offer


def compute(layer: Offer) -> Figures:
    """`mmd2` of a layer."""
    return {"mmd2": mmd2(*layer.tokens())}


def mmd2(a: Tensor, b: Tensor) -> float | None:
    """Unbiased squared MMD of rows a [r, d] and b [s, d] (Gretton et al. 2012, eq. 3).

    The kernel is exp(-|x - y|^2 / (2 w^2)), w the median distance between any two rows of both. None
    where w is zero.
    """
    r, s = len(a), len(b)
    distances = torch.nn.functional.pdist(torch.cat([a, b]).double())
    width = distances.median()
    if not width:
        return None
    kernel = torch.zeros(r + s, r + s, dtype=torch.float64, device=a.device)
    above = torch.triu_indices(r + s, r + s, 1, device=a.device)
    kernel[above[0], above[1]] = torch.exp(-distances.square() / (2 * width**2))
    within = 2 * kernel[:r, :r].sum() / (r * (r - 1)) + 2 * kernel[r:, r:].sum() / (s * (s - 1))
    return float(within - 2 * kernel[:r, r:].mean())
