"""`token_cosine`: cosines between single vision and text tokens.

Definition: over all pairs of a vision and a text token, the mean cosine; and the mean over vision tokens
of the largest cosine with any text token. Cosines of tokens are how Shukor and Cord 2024 (arXiv
2405.16700) follow modalities through the layers. Cost: all cosines between up to 1024 tokens of each
modality. No standard error: tokens of one document are not independent.
"""

from torch import Tensor

from mir_task.metric.extras.offer import Figures, Offer


def compute(layer: Offer) -> Figures:
    """`token_cosine` and `best_token_cosine` of a layer."""
    mean, best = token_cosines(*layer.tokens())
    return {"token_cosine": mean, "best_token_cosine": best}


def token_cosines(vision: Tensor, text: Tensor) -> tuple[float | None, float | None]:
    """Mean cosine of all pairs, and mean over vision rows of the largest with a text row.

    Args:
        vision: [r, d].
        text: [s, d].

    Returns:
        None and None where a modality has no rows but zeros. Those have no direction and are left out.
    """
    parts = [rows[rows.any(1)] for rows in (vision, text)]
    if not all(map(len, parts)):
        return None, None
    a, b = (rows / rows.norm(dim=1, keepdim=True) for rows in parts)
    cosines = a @ b.T
    return float(cosines.mean()), float(cosines.amax(1).mean())
