"""Llama 3.2 Vision, whose decoder sees images by cross-attention."""

from pathlib import Path

from mir_task.demo.checkpoint import CHAT_TEMPLATE, train_tokenizer
from tests.adapters import DEVICE_MAP, Row
from tests.adapters.common import save, text_settings


def llama_vision(folder: Path) -> Path:
    """Llama 3.2 Vision: one placeholder an image, whose features no position of the decoder holds."""
    from transformers import (
        MllamaConfig,
        MllamaForConditionalGeneration,
        MllamaImageProcessor,
        MllamaProcessor,
    )

    tokenizer = train_tokenizer(extra=["<|image|>"])
    config = MllamaConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "max_num_tiles": 1,
            "intermediate_layers_indices": [0],
            "supported_aspect_ratios": [[1, 1]],
            "vision_output_dim": 64,
        },
        text_config=text_settings(
            tokenizer, cross_attention_layers=[1], rope_scaling={"rope_type": "default"}
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    processor = MllamaProcessor(
        image_processor=MllamaImageProcessor(size={"height": 28, "width": 28}, max_image_tiles=1),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE.replace("<image>", "<|image|>"),
    )
    return save(MllamaForConditionalGeneration, config, processor, folder)


ROWS = [
    Row(
        "llama_vision",
        "simple",
        "MllamaForConditionalGeneration",
        llama_vision,
        refused="no vision tokens in its text decoder's sequence",
        reason="Images enter by cross-attention: one placeholder an image, and no vision rows.",
        instead="none, as MIR is not defined on it",
        needs=DEVICE_MAP,
    ),
]
