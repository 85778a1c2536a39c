"""Qwen2.5-VL."""

import torch

from tests.checkpoints import make_qwen2_5_vl
from tests.zoo import Row, qwen

ROWS = [
    Row(
        "qwen2_5_vl",
        kind,
        "Qwen2_5_VLForConditionalGeneration",
        make_qwen2_5_vl,
        arguments={"min_pixels": 28 * 28, "max_pixels": 28 * 28 * 64},
        dtype=torch.bfloat16,
        count=count,
    )
    for kind, count in (("chat", qwen.count_fetched), ("simple", None))
]
