"""The three small LLaVAs of the demo, trained in `studies/alignment`, as checkpoints on disk."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from mir_task.demo.checkpoint import make_processor

SCENES = Path(__file__).with_name("scenes")
MODELS = ("untrained", "little", "much")
"""By how much pre-training their connector has had."""


def word_tokenizer(words: Sequence[str], chat_template: str) -> Any:
    """Tokenizer of one token a word.

    Args:
        words: the special tokens <unk>, <s>, </s>, <pad> and <image>, then all others.
        chat_template: of the conversations.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", ids["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
        chat_template=chat_template,
    )


def scenes_processor(tokenizer: Any) -> Any:
    """Processor of images of 48 x 48 pixels as they are, 36 tokens each."""
    plain = {
        "do_resize": False,
        "do_center_crop": False,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    return make_processor(tokenizer, side=48, patch=8, **plain)


def write_models(folder: Path) -> list[Path]:
    """The three checkpoints, as folders that any adapter for LLaVA loads."""
    # Made on the spot, because no release of transformers reads the files that another one saved.
    processor = scenes_processor(
        word_tokenizer(**json.loads((SCENES / "words.json").read_text("utf-8")))
    )
    checkpoints = [folder / name for name in MODELS]
    for checkpoint in checkpoints:
        shutil.copytree(SCENES / MODELS[0], checkpoint, dirs_exist_ok=True)
        processor.save_pretrained(checkpoint)
        connector = SCENES / f"{checkpoint.name}.safetensors"
        if connector.is_file():
            weights = checkpoint / "model.safetensors"
            parts = {
                f"multi_modal_projector.{name}": part for name, part in load_file(connector).items()
            }
            save_file({**load_file(weights), **parts}, weights, metadata={"format": "pt"})
    return checkpoints
