"""What the small checkpoints have in common."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch


def text_settings(tokenizer: Any, **changes: Any) -> dict[str, Any]:
    """Settings of a text decoder of 3 layers and 32 dimensions."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **changes,
    }


def naming(**tokens: str) -> Any:
    """For `train_tokenizer`: a kind of tokenizer that names tokens of its model, as `image_token`."""
    from transformers import PreTrainedTokenizerFast

    return partial(PreTrainedTokenizerFast, extra_special_tokens=tokens)


def image_processor(name: str) -> Any:
    """The class of that name; older releases of transformers have it with `Fast` at the end only."""
    import transformers

    return getattr(transformers, name, None) or getattr(transformers, f"{name}Fast")


def save(model_class: Any, config: Any, processor: Any, folder: Path, drawn: Sequence[str] = ()) -> Path:
    """Write a model with random weights and its processor.

    Args:
        drawn: parameters to draw too, where the model's own start makes all vision tokens equal.
    """
    torch.manual_seed(0)
    model = model_class(config)
    for name in drawn:
        torch.nn.init.normal_(model.get_parameter(name))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def placeholders(text: str, token: str) -> Callable[[Any, Any], int]:
    """For `Row.count`: how many of `token` the processor makes of `text` and an image."""

    def count(processor: Any, image: Any) -> int:
        ids = processor(images=[image], text=[text], return_tensors="pt")["input_ids"]
        return int((ids == processor.tokenizer.convert_tokens_to_ids(token)).sum())

    return count
