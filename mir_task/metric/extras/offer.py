"""What a layer offers to a measure."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mir_task.metric.frechet import Gaussian

Figures = dict[str, float | None]
"""Fields of a `LayerResult`; None where a figure does not exist for these tokens."""


class Offer(NamedTuple):
    """The vision and the text tokens of one layer."""

    gaussians: tuple[Gaussian, Gaussian]
    """Of the raw tokens after the outlier rule."""
    text_norm: float
    """Mean raw L2 norm of the text tokens, outliers included."""
    mean_rows: Sequence[tuple[Tensor, Tensor]] = ()
    """Mean raw vision and text row [d] of each document, in any order, where a measure needs them."""
    sample: tuple[Tensor | None, Tensor | None] = (None, None)
    """Raw rows [n, d] of up to 1024 vision and as many text tokens, drawn from all documents, where a
    measure needs them."""

    def means(self) -> tuple[Tensor, Tensor]:
        """Mean vision and mean text rows [documents, d]."""
        vision, text = zip(*self.mean_rows, strict=True)
        return torch.stack(vision), torch.stack(text)

    def tokens(self) -> tuple[Tensor, Tensor]:
        """The sample in float64."""
        vision, text = self.sample
        assert vision is not None
        assert text is not None
        return vision.double(), text.double()
