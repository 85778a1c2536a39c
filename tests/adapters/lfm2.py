"""LFM2-VL: short convolutions between layers of attention, large images in tiles."""

from pathlib import Path

import torch

from mir_task.demo.checkpoint import CHAT_TEMPLATE, train_tokenizer
from tests.adapters import Row
from tests.adapters.common import count_expanded, save, skip_on_transformers_4, text_settings


def lfm2_vl(folder: Path) -> Path:
    """Tiles of 16 vision tokens and a smaller picture of the whole, each with a mark before it."""
    skip_on_transformers_4("Transformers 4 saves its configuration under a name that it does not load.")
    from transformers import (
        Lfm2VlConfig,
        Lfm2VlForConditionalGeneration,
        Lfm2VlImageProcessor,
        Lfm2VlProcessor,
    )

    places = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)]
    marks = ["<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"]
    tokenizer = train_tokenizer(extra=[*marks, *places])
    processor = Lfm2VlProcessor(
        image_processor=Lfm2VlImageProcessor(
            tile_size=128, max_tiles=4, min_image_tokens=4, max_image_tokens=16
        ),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
    config = Lfm2VlConfig(
        vision_config={
            "model_type": "siglip2_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 16,
            "num_patches": 64,
        },
        text_config={
            "model_type": "lfm2",
            **text_settings(tokenizer),
            "layer_types": ["conv", "full_attention", "conv"],
        },
        projector_hidden_size=32,
        image_token_id=processor.image_token_id,
    )
    return save(Lfm2VlForConditionalGeneration, config, processor, folder)


ROWS = [
    Row(
        "lfm2_5_vl",
        "chat",
        "Lfm2VlForConditionalGeneration",
        lfm2_vl,
        arguments={"device_map": None},
        dtype=torch.bfloat16,
        count=count_expanded,
    ),
]
