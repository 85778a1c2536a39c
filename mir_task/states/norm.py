"""The decoder's final norm, for states of the last layer that were written before it."""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional


class NormKind(BaseModel):
    """How a final norm computes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["rms", "rms_one_plus", "layer"]
    """`rms`: x / rms(x) * weight, as in Llama and Qwen; `rms_one_plus`: x / rms(x) * (1 + weight), as in
    Gemma; `layer`: torch's layer norm."""
    epsilon: float = Field(gt=0)


@dataclass(frozen=True, eq=False)
class FinalNorm:
    """A final norm with its weights."""

    how: NormKind
    weight: Tensor
    """[d]"""
    bias: Tensor | None = None
    """[d], of a layer norm."""

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows [n, d] after the norm, in their dtype; computed in float32, as transformers does."""
        weight = self.weight.to(rows.device)
        wide = rows.float()
        if self.how.kind == "layer":
            bias = None if self.bias is None else self.bias.to(rows.device).float()
            normed = functional.layer_norm(wide, weight.shape, weight.float(), bias, self.how.epsilon)
            return normed.to(rows.dtype)
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.how.epsilon)
        if self.how.kind == "rms_one_plus":
            return (normed * (1 + weight.float())).to(rows.dtype)
        return normed.to(rows.dtype) * weight.to(rows.dtype)
