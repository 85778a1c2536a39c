"""Qwen2.5-VL."""

from pathlib import Path

import torch

from tests.adapters import Row, qwen


def qwen2_5_vl(folder: Path) -> Path:
    """Qwen2.5-VL: vision tokens by the size of the image, three-axis positions, windows of attention."""
    return qwen.checkpoint(
        folder,
        "Qwen2_5_VL",
        patch=14,
        vision={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "window_size": 56,
        },
        text={
            "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [2, 3, 3]},
        },
    )


ROWS = [
    Row(
        "qwen2_5_vl",
        kind,
        "Qwen2_5_VLForConditionalGeneration",
        qwen2_5_vl,
        arguments=qwen.limits(14),
        dtype=torch.bfloat16,
        count=count,
    )
    for kind, count in (("chat", qwen.count_fetched), ("simple", None))
]
