"""`sliced_wasserstein`: Wasserstein-2 distance of vision and text tokens, averaged over directions.

Definition: Bonneel et al. 2015 (*Sliced and Radon Wasserstein barycenters of measures*): the root of the
mean, over directions on the unit sphere, of the squared Wasserstein-2 distance of the tokens projected
onto the direction. A distance of means contributes its square over d exactly; what is left, that of
centred tokens, is averaged over 512 directions of a fixed seed. Cost: up to 2048 tokens projected and
sorted 512 times. No standard error: tokens of one document are not independent.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mir_task.metric.extras.offer import Figures, Offer

DIRECTIONS, SEED = 512, 0


def compute(layer: Offer) -> Figures:
    """`sliced_wasserstein` of a layer, in units of the mean text norm."""
    return {"sliced_wasserstein": sliced_wasserstein(*layer.tokens()) / layer.text_norm}


def directions(size: int) -> Tensor:
    """Unit vectors [size, 512], float64, the same on every machine."""
    drawn = np.random.default_rng(SEED).standard_normal((DIRECTIONS, size))
    return functional.normalize(torch.from_numpy(drawn)).T


def sliced_wasserstein(a: Tensor, b: Tensor) -> float:
    """Sliced Wasserstein-2 distance of rows a [r, d] and b [s, d]."""
    means = a.mean(0), b.mean(0)
    onto = directions(a.shape[1]).to(a)
    one, other = ((rows - mean) @ onto for rows, mean in zip((a, b), means, strict=True))
    of_means = (means[0] - means[1]).square().mean()
    return float((of_means + _squared_wasserstein(one, other).mean()).sqrt())


def _squared_wasserstein(a: Tensor, b: Tensor) -> Tensor:
    """W_2^2 of each column of [r, k] and [s, k]: the squared difference of their quantile functions."""
    ends = [torch.arange(1, len(x) + 1, dtype=torch.float64) / len(x) for x in (a, b)]
    steps = torch.cat(ends).sort().values  # between two of which neither function changes
    widths = steps.diff(prepend=steps.new_zeros(1))
    one, other = (
        x.sort(0).values[torch.searchsorted(end, steps - widths / 2)]
        for x, end in zip((a, b), ends, strict=True)
    )
    return (widths[:, None] * (one - other).square()).sum(0)
