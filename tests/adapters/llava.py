"""LLaVA and its successors in transformers."""

from pathlib import Path

from mir_task.demo.checkpoint import CHAT_TEMPLATE, make_llava, train_tokenizer
from tests.adapters import DEVICE_MAP, Row
from tests.adapters.common import save, text_settings, with_videos

TILE = {"height": 56, "width": 56}
GRIDS = [[56, 112], [112, 56], [112, 112]]


def llava(folder: Path) -> Path:
    """LLaVA: 16 vision tokens an image."""
    return make_llava(folder, hidden_size=32, layers=3, image_size=56)


def llava_next(folder: Path) -> Path:
    """LLaVA-NeXT: tiles by the shape of the image, and a learned row after each line of patches."""
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    tokenizer = train_tokenizer()
    config = LlavaNextConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
            "projection_dim": 32,
        },
        text_config={"model_type": "llama", **text_settings(tokenizer)},
        image_grid_pinpoints=GRIDS,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": 56}, crop_size=TILE, image_grid_pinpoints=GRIDS
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which "default" leaves out again
        chat_template=CHAT_TEMPLATE,
    )
    return save(LlavaNextForConditionalGeneration, config, processor, folder)


def llava_onevision(folder: Path) -> Path:
    """LLaVA-OneVision: as LLaVA-NeXT, with the features of more than 2 tiles (here) scaled down."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        Qwen2TokenizerFast,
    )

    tokenizer = train_tokenizer(extra=["<video>"], kind=Qwen2TokenizerFast)
    grids = [[56, 56], *GRIDS]
    config = LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
            "vision_use_head": False,
        },
        text_config={"model_type": "qwen2", **text_settings(tokenizer)},
        image_grid_pinpoints=grids,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        vision_aspect_ratio="anyres_max_2",
    )
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=TILE, image_grid_pinpoints=grids),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=TILE),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
        chat_template=with_videos(CHAT_TEMPLATE, "<video>\\n"),
    )
    return save(LlavaOnevisionForConditionalGeneration, config, processor, folder)


ROWS = [
    Row("llava_hf", kind, model_class, make, needs=DEVICE_MAP, instead="the chat kind, as by default")
    for model_class, make in (
        ("LlavaForConditionalGeneration", llava),
        ("LlavaNextForConditionalGeneration", llava_next),
        ("LlavaOnevisionForConditionalGeneration", llava_onevision),
    )
    for kind in ("chat", "simple")
]
