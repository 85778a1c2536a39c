"""Gemma 3 and 4, which attend to the tokens of an image in both directions."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mir_task.demo.checkpoint import CHAT_TEMPLATE
from tests.adapters import Call, Row, hidden_states
from tests.adapters.common import named_tokenizer, save, text_settings

# The adapters begin with a system message.
TEMPLATE = CHAT_TEMPLATE.replace("message['role'] == 'user'", "message['role'] != 'assistant'")


def gemma3(folder: Path) -> Path:
    """Gemma 3: 16 vision tokens an image, between marks of text; layers with a sliding window."""
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessor,
        Gemma3Processor,
    )

    tokenizer = named_tokenizer(
        {
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
        padding_side="left",
    )
    config = Gemma3Config(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 112,
            "patch_size": 14,
            "vision_use_head": False,
        },
        text_config=text_settings(
            tokenizer,
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=64,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        mm_tokens_per_image=16,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": 112, "width": 112}),
        tokenizer=tokenizer,
        image_seq_length=16,
        chat_template=TEMPLATE.replace("<image>\n", "<start_of_image>"),
    )
    return save(
        Gemma3ForConditionalGeneration,
        config,
        processor,
        folder,
        "model.multi_modal_projector.mm_input_projection_weight",
    )


def gemma4(folder: Path, **text: Any) -> Path:
    """Gemma 4: up to 70 vision tokens by the shape of the image; heads of two sizes."""
    from transformers import (
        Gemma4AudioFeatureExtractor,
        Gemma4Config,
        Gemma4ForConditionalGeneration,
        Gemma4ImageProcessor,
        Gemma4Processor,
        Gemma4VideoProcessor,
    )

    tokenizer = named_tokenizer(
        {
            "image_token": "<|image|>",
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "audio_token": "<|audio|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
        },
        extra=["<|video|>"],
        padding_side="left",
    )
    dense = {
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "use_bidirectional_attention": "vision",
        "hidden_size_per_layer_input": 0,
    }
    config = Gemma4Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "position_embedding_size": 256,
        },
        text_config=text_settings(
            tokenizer,
            head_dim=16,
            global_head_dim=32,
            sliding_window=64,
            vocab_size_per_layer_input=len(tokenizer),
            **(text or dense),
        ),
        audio_config=None,
        image_token_id=tokenizer.image_token_id,
        boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id,
        audio_token_id=tokenizer.audio_token_id,
        boa_token_id=tokenizer.boa_token_id,
        eoa_token_index=tokenizer.eoa_token_id,
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
    )
    processor = Gemma4Processor(
        feature_extractor=Gemma4AudioFeatureExtractor(),
        image_processor=Gemma4ImageProcessor(max_soft_tokens=70),
        tokenizer=tokenizer,
        video_processor=Gemma4VideoProcessor(),
        image_seq_length=70,
        chat_template=TEMPLATE.replace("<image>\n", "<|image|>"),
    )
    return save(Gemma4ForConditionalGeneration, config, processor, folder)


def gemma4_shared(folder: Path) -> Path:
    """Gemma 4 E2B and E4B: embeddings for every layer, and last layers with the keys of earlier ones.

    In `generate` transformers runs those last layers on the last position alone.
    """
    return gemma4(
        folder,
        num_hidden_layers=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=8,
    )


def states(model: Any, call: Call) -> list[Tensor]:
    """Hidden states with positions counted from the first real token, as `generate` counts them.

    In bfloat16 the positions before it, padding to a multiple of 8, would change the fourth digit.
    """
    real = call["attention_mask"].long()
    return hidden_states(model, {**call, "position_ids": (real.cumsum(-1) - 1).clamp(min=0)})


ROWS = [
    Row(
        adapter,
        "simple",
        f"{model}ForConditionalGeneration",
        make,
        arguments,
        torch.bfloat16,
        states,
        reason=remark,
    )
    for adapter, model, make, arguments, remark in (
        ("gemma3", "Gemma3", gemma3, {}, ""),
        ("gemma4", "Gemma4", gemma4, {"max_soft_tokens": 70}, ""),
        (
            "gemma4",
            "Gemma4",
            gemma4_shared,
            {"max_soft_tokens": 70},
            "Embeddings of each layer, and layers that share keys and values, as in E2B and E4B.",
        ),
    )
]
