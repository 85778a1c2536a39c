"""Qwen2-VL."""

from pathlib import Path

from tests.adapters import Row, qwen


def qwen2_vl(folder: Path) -> Path:
    """Qwen2-VL: vision tokens by the size of the image, three-axis positions."""
    return qwen.checkpoint(
        folder,
        "Qwen2VL",
        patch=14,
        vision={"depth": 2, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2},
        text={"rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [2, 3, 3]}},
    )


ROWS = [
    Row("qwen2_vl", "simple", "Qwen2VLForConditionalGeneration", qwen2_vl, arguments=qwen.limits(14)),
]
