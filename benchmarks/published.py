"""The published procedure, written down from its definition, to measure against.

One layer at a time in float32, all tokens in memory: text-centric scale, 3-sigma rule with medians, two
covariances, and for the root term either the iteration of the default ("fast") mode, ten inversions that
return the product itself, or `scipy.linalg.sqrtm` of the float32 product ("accurate").
"""

import scipy.linalg
import torch
from torch import Tensor


def fast_root(product: Tensor) -> float:
    """What the default mode takes for Tr((S_v S_t)^(1/2)): five steps from a fixed point."""
    root, inverse = product, torch.eye(len(product)).to(product)
    for _ in range(5):
        root = (root + torch.linalg.inv(inverse) @ product) / 2
        inverse = (inverse + torch.linalg.inv(root) @ product) / 2
    return float(root.trace())


def accurate_root(product: Tensor) -> float:
    """Trace of the real part of SciPy's square root of a float32 product."""
    return float(scipy.linalg.sqrtm(product.cpu().numpy()).real.trace())


def clean(tokens: Tensor, scale: Tensor) -> Tensor:
    """Scaled tokens [n, d] with outliers replaced by per-dimension medians."""
    tokens = tokens * scale
    norms = tokens.norm(dim=1)
    outlier = (norms - norms.median()).abs() > 3 * norms.std()
    return torch.where(outlier[:, None], tokens.median(0).values, tokens)


def layer_distance(vision: Tensor, text: Tensor, *, accurate: bool = False) -> float:
    """Distance of one layer from features [r, d] and [s, d] of any dtype."""
    vision, text = vision.float(), text.float()
    scale = 1 / text.norm(dim=1).mean()
    vision, text = clean(vision, scale), clean(text, scale)
    a, b = vision.T.cov(), text.T.cov()
    root = (accurate_root if accurate else fast_root)(a @ b)
    shift = vision.mean(0) - text.mean(0)
    return float(shift @ shift + a.trace() + b.trace() - 2 * root)
