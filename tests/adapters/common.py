"""What the small checkpoints have in common."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version

from mir_task.demo.checkpoint import train_tokenizer


def named_tokenizer(
    names: Mapping[str, str], *, extra: Sequence[str] = (), kind: Any = None, **settings: Any
) -> Any:
    """Tokenizer whose special tokens are attributes, as processors look for them.

    Args:
        names: from an attribute, such as `image_token`, to its token.
        extra: special tokens without a name.
        kind: class of the tokenizer.
        settings: further arguments of the class.
    """
    from transformers import PreTrainedTokenizerFast

    def named(**arguments: Any) -> Any:
        # Both transformers 4 and 5 take names only in the place of a list.
        del arguments["additional_special_tokens"]
        chosen = kind or PreTrainedTokenizerFast
        return chosen(**arguments, **settings, extra_special_tokens=dict(names))

    return train_tokenizer(extra=[*names.values(), *extra], kind=named)


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


def with_videos(template: str, mark: str) -> str:
    """The chat template of the demo, with `mark` where a video stands."""
    return template.replace(
        "else part['text']", f"else '{mark}' if part['type'] == 'video' else part['text']"
    )


def count_expanded(processor: Any, image: Any) -> int:
    """Vision tokens of a PIL image: the placeholders into which the processor expands one."""
    ids = processor(images=image, text=processor.image_token, return_tensors="pt")["input_ids"]
    return int((ids == processor.image_token_id).sum())


def skip_on_transformers_4(reason: str) -> None:
    """Skip a checkpoint that cannot be made there."""
    import transformers

    if Version(transformers.__version__).major < 5:
        pytest.skip(reason if "transformers 4" in reason.lower() else f"on transformers 4: {reason}")


def save(model_class: Any, config: Any, processor: Any, folder: Path, *zeros: str) -> Path:
    """Write a model with random weights and its processor.

    Args:
        zeros: names of weights that the class starts with zeros, to be random as well.
    """
    torch.manual_seed(0)
    model = model_class(config)
    for name in zeros:
        torch.nn.init.normal_(model.get_parameter(name), std=0.02)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def image_processor(name: str) -> Any:
    """The class of that name; older releases of transformers have it with `Fast` at the end only."""
    import transformers

    return getattr(transformers, name, None) or getattr(transformers, f"{name}Fast")


def placeholders(text: str, token: str) -> Callable[[Any, Any], int]:
    """For `Row.count`: how many of `token` the processor makes of `text` and an image.

    As `count_expanded`, where the processor stands for an image by another token, or by none.
    """

    def count(processor: Any, image: Any) -> int:
        ids = processor(images=[image], text=[text], return_tensors="pt")["input_ids"]
        return int((ids == processor.tokenizer.convert_tokens_to_ids(token)).sum())

    return count
