"""Mistral Small 3.1 and Ministral 3, with the processor of Pixtral."""

from pathlib import Path

from mir_task.demo.checkpoint import CHAT_TEMPLATE, train_tokenizer
from tests.adapters import Row
from tests.adapters.common import count_expanded, save, text_settings

MARKS = ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]


def mistral3(folder: Path) -> Path:
    """Mistral 3: vision tokens by the size of the image, with marks of text at the end of each line."""
    from transformers import (
        Mistral3Config,
        Mistral3ForConditionalGeneration,
        PixtralImageProcessor,
        PixtralProcessor,
    )

    tokenizer = train_tokenizer(extra=MARKS)
    config = Mistral3Config(
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 168,
            "patch_size": 14,
        },
        text_config={
            "model_type": "mistral",
            **text_settings(tokenizer, head_dim=16, sliding_window=None),
        },
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    processor = PixtralProcessor(
        image_processor=PixtralImageProcessor(size={"longest_edge": 168}, patch_size=14),
        tokenizer=tokenizer,
        patch_size=14,
        spatial_merge_size=2,
        chat_template=CHAT_TEMPLATE.replace("<image>", "[IMG]"),
    )
    return save(Mistral3ForConditionalGeneration, config, processor, folder)


ROWS = [
    Row(
        "mistral3_vl",
        "simple",
        "Mistral3ForConditionalGeneration",
        mistral3,
        count=count_expanded,  # the processor's function for other engines counts the marks too
    )
]
