"""InternVL 3 and 3.5 in transformers."""

from pathlib import Path

import torch

from mir_task.demo.checkpoint import CHAT_TEMPLATE
from tests.adapters import Row
from tests.adapters.common import count_expanded, named_tokenizer, save, text_settings

NAMES = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def internvl(folder: Path) -> Path:
    """InternVL: 9 vision tokens a tile, up to 12 tiles by the shape of the image and a thumbnail."""
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
        Qwen2TokenizerFast,
    )

    tokenizer = named_tokenizer(NAMES, kind=Qwen2TokenizerFast)
    config = InternVLConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 84,
            "patch_size": 14,
        },
        text_config={"model_type": "qwen2", **text_settings(tokenizer)},
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=9,
        tie_word_embeddings=False,
    )
    tile = {"height": 84, "width": 84}
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=tile, crop_to_patches=True),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=tile),
        image_seq_length=9,
        chat_template=CHAT_TEMPLATE.replace("<image>", "<IMG_CONTEXT>"),
    )
    return save(InternVLForConditionalGeneration, config, processor, folder)


ROWS = [
    Row(
        "internvl_hf",
        "chat",
        "InternVLForConditionalGeneration",
        internvl,
        dtype=torch.bfloat16,
        count=count_expanded,  # the processor's function for other engines counts <img> and </img> too
    )
]
