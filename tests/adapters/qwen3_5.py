"""Qwen3.5, dense and with experts."""

from pathlib import Path
from typing import Any

import torch

from tests.adapters import Row, qwen


def qwen3_5(folder: Path) -> Path:
    """Qwen3.5: two layers of linear attention and one of full attention."""
    return _checkpoint(folder, "Qwen3_5")


def qwen3_5_moe(folder: Path) -> Path:
    """Qwen3.5 with experts: 2 of 4 for each token, and a shared one."""
    return _checkpoint(
        folder,
        "Qwen3_5Moe",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    )


def _checkpoint(folder: Path, name: str, **text: Any) -> Path:
    return qwen.checkpoint(
        folder,
        name,
        patch=16,
        vision={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
        },
        text={
            "head_dim": 32,
            "layer_types": ["linear_attention", "linear_attention", "full_attention"],
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
            },
            **text,
        },
        processor="Qwen3VLProcessor",
        video_processor="Qwen3VLVideoProcessor",
    )


ROWS = [
    Row(
        "qwen3_5",
        kind,
        model_class,
        make,
        arguments=qwen.limits(16),
        dtype=torch.bfloat16,
        count=count,
        folder=folder,
    )
    for model_class, make, folder in (
        ("Qwen3_5ForConditionalGeneration", qwen3_5, "model"),
        ("Qwen3_5MoeForConditionalGeneration", qwen3_5_moe, "35B-A3B"),
    )
    for kind, count in (("chat", qwen.count_unsized), ("simple", None))
]
