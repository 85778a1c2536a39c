"""Idefics2: a perceiver resamples every image to the same number of vision tokens."""

from pathlib import Path

from mir_task.demo.checkpoint import CHAT_TEMPLATE, train_tokenizer
from tests.adapters import DEVICE_MAP, Row
from tests.adapters.common import count_expanded, save, text_settings


def idefics2(folder: Path) -> Path:
    """16 vision tokens an image, between two marks."""
    from transformers import (
        Idefics2Config,
        Idefics2ForConditionalGeneration,
        Idefics2ImageProcessor,
        Idefics2Processor,
    )

    tokenizer = train_tokenizer(extra=["<fake_token_around_image>", "<end_of_utterance>"])
    processor = Idefics2Processor(
        image_processor=Idefics2ImageProcessor(size={"shortest_edge": 56, "longest_edge": 112}),
        tokenizer=tokenizer,
        image_seq_len=16,
        chat_template=CHAT_TEMPLATE,
    )
    config = Idefics2Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 112,
            "patch_size": 14,
        },
        perceiver_config={
            "hidden_size": 32,
            "resampler_n_latents": 16,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 16,
            "num_key_value_heads": 2,
        },
        text_config={"model_type": "mistral", **text_settings(tokenizer)},
        image_token_id=processor.image_token_id,
    )
    latents = "model.connector.perceiver_resampler.latents"  # all ones at first
    return save(Idefics2ForConditionalGeneration, config, processor, folder, latents)


ROWS = [
    Row(
        "idefics2",
        "simple",
        "Idefics2ForConditionalGeneration",
        idefics2,
        arguments={"dtype": "float32"},
        count=count_expanded,
        needs=DEVICE_MAP,
    ),
]
