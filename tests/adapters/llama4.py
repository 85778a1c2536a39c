"""Llama 4: images in tiles with separators between them, and a decoder of experts."""

from pathlib import Path

import torch
import transformers
from packaging.version import Version

from mir_task.demo.checkpoint import CHAT_TEMPLATE, train_tokenizer
from tests.adapters import Row, layer_inputs
from tests.adapters.common import image_processor, placeholders, save, text_settings


def llama4(folder: Path) -> Path:
    """Tiles of 4 vision tokens and one of the whole image; layers with and without rotation."""
    from transformers import Llama4Config, Llama4ForConditionalGeneration, Llama4Processor

    marks = ["<|image|>", "<|patch|>", "<|image_start|>", "<|image_end|>"]
    separators = ["<|tile_x_separator|>", "<|tile_y_separator|>"]
    tokenizer = train_tokenizer(extra=[*marks, *separators])
    processor = Llama4Processor(
        image_processor=image_processor("Llama4ImageProcessor")(
            size={"height": 56, "width": 56}, max_patches=4
        ),
        tokenizer=tokenizer,
        patch_size=14,
        chat_template=CHAT_TEMPLATE.replace("<image>", "<|image|>"),
    )
    config = Llama4Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
            "projector_input_dim": 32,
            "projector_output_dim": 32,
            "vision_output_dim": 32,
        },
        text_config={
            **text_settings(tokenizer),
            "head_dim": 16,
            "intermediate_size_mlp": 64,
            "num_local_experts": 2,
            "interleave_moe_layer_step": 2,
            "no_rope_layer_interval": 2,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<|patch|>"),
        boi_token_index=tokenizer.convert_tokens_to_ids("<|image_start|>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<|image_end|>"),
    )
    return save(Llama4ForConditionalGeneration, config, processor, folder)


_BROKEN = Version(transformers.__version__) >= Version("5.24")

ROWS = [
    Row(
        "llama4_scout",
        "simple",
        "Llama4ForConditionalGeneration",
        llama4,
        dtype=torch.bfloat16,
        states=layer_inputs("language_model.model.layers"),
        count=placeholders("<|image|>", "<|patch|>"),
        broken="no attribute 'image_outputs'" if _BROKEN else "",
        reason="The model's own forward ends in an error, after its decoder has run "
        "(modeling_llama4.py:1318 of transformers 5.24): it answers nothing."
        if _BROKEN
        else "",
    ),
]
