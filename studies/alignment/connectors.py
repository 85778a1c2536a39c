"""What leads from the vision encoder's features to the decoder's embeddings."""

from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["linear", "mlp", "mlp4", "resampler"]


class Resampler(nn.Module):
    """Learned queries, as many as there are features, that attend to them (a one-layer Q-Former).

    Args:
        features: dimensions of a feature.
        size: d of the decoder.
        tokens: number of queries.
    """

    def __init__(self, features: int, size: int, tokens: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(tokens, size) * size**-0.5)
        self.into = nn.Linear(features, size)
        self.attention = nn.MultiheadAttention(size, 4, batch_first=True)
        self.norms = nn.ModuleList([nn.LayerNorm(size), nn.LayerNorm(size)])
        self.feed_forward = nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.Linear(size, size))

    def forward(self, features: Tensor) -> Tensor:
        """Tokens [images, queries, size] of features [images, n, features]."""
        keys = self.norms[0](self.into(features))
        queries = self.queries.expand(len(features), -1, -1)
        rows = queries + self.attention(queries, keys, keys, need_weights=False)[0]
        return rows + self.feed_forward(self.norms[1](rows))


class FixedNorm(nn.Module):
    """Gives every row one and the same L2 norm."""

    def __init__(self, norm: float) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, rows: Tensor) -> Tensor:
        """Rows [..., d] of that norm."""
        return nn.functional.normalize(rows, dim=-1) * self.norm


def make(
    kind: Kind,
    features: int,
    size: int,
    tokens: int,
    *,
    std: float,
    scale: float = 1.0,
    norm: float | None = None,
) -> nn.Module:
    """A connector with random weights.

    Args:
        kind: "linear" is one layer, "mlp" the two of LLaVA-1.5, "mlp4" four, with GELU between them.
        features: dimensions of the encoder's features.
        size: d of the decoder.
        tokens: vision tokens of an image.
        std: of the weights of linear layers at first.
        scale: by which the last layer's are multiplied.
        norm: L2 norm that every token is given at the end; none where None.
    """
    if kind == "resampler":
        resampler = Resampler(features, size, tokens)
        last, layers = resampler.feed_forward[-1], [resampler]
    else:
        depth = {"linear": 1, "mlp": 2, "mlp4": 4}[kind]
        layers = [nn.Linear(features, size)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), nn.Linear(size, size)]
        last = layers[-1]
    for module in nn.ModuleList(layers).modules():
        if isinstance(module, nn.Linear):  # as LLaVA's own connector starts
            nn.init.normal_(module.weight, std=std)
            nn.init.zeros_(module.bias)
    with torch.no_grad():
        last.weight *= scale
    return nn.Sequential(*layers, *([FixedNorm(norm)] if norm is not None else []))
