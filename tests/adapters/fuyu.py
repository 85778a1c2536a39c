"""Fuyu: no vision tower, patches of the image enter the decoder by one linear layer."""

from pathlib import Path

import torch

from mir_task.demo.checkpoint import train_tokenizer
from tests.adapters import Row
from tests.adapters.common import placeholders, save, skip_on_transformers_4, text_settings


def fuyu(folder: Path) -> Path:
    """A vision token a patch of 30 x 30 pixels, and a text token at the end of each line."""
    from tokenizers import AddedToken, Regex, normalizers
    from transformers import FuyuConfig, FuyuForCausalLM, FuyuImageProcessor, FuyuProcessor

    # It takes the placeholder's id from its text alone, before which this tokenizer puts no space.
    skip_on_transformers_4("The processor of transformers 4 does not take the small tokenizer.")
    tokenizer = train_tokenizer(extra=[f"<0x0{n}>" for n in range(5)])
    # The processor drops the first token of the placeholders, as the space that Llama's tokenizer
    # puts before them.
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(
        Regex(r"^\|SPEAKER\|(?=\|)"), " |SPEAKER|"
    )
    tokenizer.add_tokens([AddedToken(name, normalized=True) for name in ("|SPEAKER|", "|NEWLINE|")])
    processor = FuyuProcessor(image_processor=FuyuImageProcessor(), tokenizer=tokenizer)
    config = FuyuConfig(
        text_config={"model_type": "persimmon", **text_settings(tokenizer)},
        image_token_id=processor.image_token_id,
    )
    return save(FuyuForCausalLM, config, processor, folder)


ROWS = [
    Row(
        "fuyu",
        "simple",
        "FuyuForCausalLM",
        fuyu,
        arguments={"device_map": None},
        dtype=torch.bfloat16,
        count=placeholders("", "|SPEAKER|"),
        broken="mat1 and mat2 must have the same dtype, but got Float and BFloat16",
        reason="The adapter loads the model in bfloat16 (simple/fuyu.py:50), but casts the patches one "
        "by one into their own float32 tensor (:191, :235), where they stay float32.",
    ),
]
