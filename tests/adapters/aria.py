"""Aria: a decoder of experts; the adapter always asks for 980 pixels and for 1024 new tokens."""

from pathlib import Path

import torch

from mir_task.demo.checkpoint import CHAT_TEMPLATE
from tests.adapters import DEVICE_MAP, Row
from tests.adapters.common import named_tokenizer, save, text_settings


def aria(folder: Path) -> Path:
    """16 vision tokens an image, of 14 x 14 large patches."""
    from transformers import (
        AriaConfig,
        AriaForConditionalGeneration,
        AriaImageProcessor,
        AriaProcessor,
        AriaTextConfig,
        GenerationConfig,
    )

    # The adapter takes the text "<image>" out of the prompt.
    tokenizer = named_tokenizer({"image_token": "<|img|>"})
    processor = AriaProcessor(
        image_processor=AriaImageProcessor(),
        tokenizer=tokenizer,
        size_conversion={980: 16},
        chat_template=CHAT_TEMPLATE.replace("<image>", "<|img|>"),
    )
    config = AriaConfig(
        vision_config={
            "model_type": "idefics3_vision",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 980,
            "patch_size": 70,
        },
        text_config=AriaTextConfig(
            **text_settings(tokenizer), moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1
        ),
        projector_patch_to_query_dict={196: 16},
        image_token_index=processor.image_token_id,
    )
    save(AriaForConditionalGeneration, config, processor, folder)
    # Any token ends the answer, or the adapter would wait for 1024 of them.
    GenerationConfig(eos_token_id=list(range(len(tokenizer)))).save_pretrained(folder)
    return folder


ROWS = [
    Row(
        "aria",
        "simple",
        "AriaForConditionalGeneration",
        aria,
        dtype=torch.bfloat16,
        needs=DEVICE_MAP,
    ),
]
