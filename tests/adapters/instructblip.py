"""InstructBLIP: its `generate` goes round the top module, straight to the language model's."""

from pathlib import Path

from mir_task.demo.checkpoint import train_tokenizer
from tests.adapters import Row, layer_inputs
from tests.adapters.common import placeholders, save, text_settings


def instructblip(folder: Path) -> Path:
    """16 queries an image, before the text; a Q-Former with a tokenizer of its own."""
    from transformers import (
        BlipImageProcessor,
        InstructBlipConfig,
        InstructBlipForConditionalGeneration,
        InstructBlipProcessor,
    )

    tokenizer, questions = train_tokenizer(), train_tokenizer()
    questions.model_max_length = 512
    processor = InstructBlipProcessor(
        image_processor=BlipImageProcessor(size={"height": 56, "width": 56}),
        tokenizer=tokenizer,
        qformer_tokenizer=questions,
        num_query_tokens=16,
    )
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = InstructBlipConfig(
        vision_config={**shape, "image_size": 56, "patch_size": 14, "initializer_range": 0.02},
        qformer_config={**shape, "vocab_size": len(questions), "encoder_hidden_size": 32},
        text_config={"model_type": "llama", **text_settings(tokenizer)},
        num_query_tokens=16,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return save(InstructBlipForConditionalGeneration, config, processor, folder, "query_tokens")


ROWS = [
    Row(
        "instructblip",
        "simple",
        "InstructBlipForConditionalGeneration",
        instructblip,
        arguments={"device_map": None},
        states=layer_inputs("language_model.model.layers"),
        count=placeholders("", "<image>"),
        rule="provenance",
        reason="The language model gets embeddings only, and no module above it sees the ids.",
    ),
]
