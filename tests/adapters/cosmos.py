"""Cosmos 3 as a reasoner: Qwen3-VL's architecture, which the adapter loads at the first request only."""

from pathlib import Path

from mir_task.demo.checkpoint import CHAT_TEMPLATE, train_tokenizer
from tests.adapters import Row, layer_inputs
from tests.adapters.common import save, text_settings

_LIMITS = {"min_pixels": 32 * 32, "max_pixels": 32 * 32 * 64}


def cosmos(folder: Path) -> Path:
    """Vision tokens by the size of the image; the first decoder layers get features of the tower too."""
    from transformers import (
        Cosmos3OmniConfig,
        Cosmos3OmniForConditionalGeneration,
        Qwen2TokenizerFast,
        Qwen2VLImageProcessor,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = train_tokenizer(extra=marks, kind=Qwen2TokenizerFast)
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=16, **_LIMITS),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE.replace(
            "'<image>\n'", "'<|vision_start|><|image_pad|><|vision_end|>'"
        ),
    )
    config = Cosmos3OmniConfig(
        vision_config={
            "model_type": "qwen3_vl_vision",
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        text_config={
            "model_type": "qwen3_vl_text",
            **text_settings(tokenizer),
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 3, 3],
                "mrope_interleaved": True,
            },
        },
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        vision_start_token_id=processor.vision_start_token_id,
        vision_end_token_id=processor.vision_end_token_id,
    )
    return save(Cosmos3OmniForConditionalGeneration, config, processor, folder)


ROWS = [
    Row(
        "cosmos_wm",
        "simple",
        "Cosmos3OmniForConditionalGeneration",
        cosmos,
        arguments={
            "backend": "transformers_reasoner",
            "nim_model": "{checkpoint}",
            "output_dir": "{checkpoint}/videos",
            **{f"reasoner_{name}": value for name, value in _LIMITS.items()},
        },
        states=layer_inputs("model.language_model.layers"),
        folder="Cosmos3",
    ),
]
