"""Qwen3-VL, dense and with experts."""

from pathlib import Path
from typing import Any

import torch

from tests.adapters import Row, layer_inputs, qwen


def qwen3_vl(folder: Path) -> Path:
    """Qwen3-VL: DeepStack adds features of the vision tower between the first layers."""
    return _checkpoint(folder, "Qwen3VL")


def qwen3_vl_moe(folder: Path) -> Path:
    """Qwen3-VL with experts: 2 of 4 for each token."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return _checkpoint(folder, "Qwen3VLMoe", **experts)


def _checkpoint(folder: Path, name: str, **text: Any) -> Path:
    return qwen.checkpoint(
        folder,
        name,
        patch=16,
        vision={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        text={
            "head_dim": 16,
            "rope_scaling": {
                "rope_type": "default",
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
        "qwen3_vl",
        kind,
        model_class,
        make,
        arguments=qwen.limits(16),
        dtype=torch.bfloat16,
        states=layer_inputs("model.language_model.layers"),
        count=count,
        folder=folder,
    )
    for model_class, make, folder in (
        ("Qwen3VLForConditionalGeneration", qwen3_vl, "model"),
        ("Qwen3VLMoeForConditionalGeneration", qwen3_vl_moe, "30B-A3B"),
    )
    for kind, count in (("chat", qwen.count_unsized), ("simple", None))
]
