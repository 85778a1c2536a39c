"""A small checkpoint of LLaVA's architecture with random weights, made on the spot.

`python -m mir_task.demo.checkpoint FOLDER` writes one; nothing is downloaded. Its MIR says nothing
about any real model: it is there to run the whole path in a minute.
"""

import argparse
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

PASSAGES = Path(__file__).with_name("passages.jsonl")

# The conversation of Vicuna v1, in which LLaVA-1.5 was trained and the published MIR is measured.
# Content is a string in the simple adapters and a list of parts in the chat adapters.
CHAT_TEMPLATE = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
    "{% for message in messages %}"
    "{{ ' USER: ' if message['role'] == 'user' else ' ASSISTANT: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{{ '<image>\n' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>", "<image>")


def train_tokenizer(vocabulary: int = 2000, extra: Sequence[str] = (), kind: type | None = None) -> Any:
    """Byte-level BPE tokenizer trained on the demo's passages; it loses no character of any text.

    Args:
        vocabulary: number of tokens, the special ones included.
        extra: special tokens besides `SPECIAL_TOKENS`.
        kind: class of the tokenizer, where a processor accepts no other.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [json.loads(line)["text"] for line in PASSAGES.read_text("utf-8").splitlines()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[*SPECIAL_TOKENS, *extra],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", SPECIAL_TOKENS.index("<s>"))]
    )
    return (kind or PreTrainedTokenizerFast)(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>", *extra],
        model_max_length=2048,
        model_input_names=["input_ids", "attention_mask"],
        chat_template=CHAT_TEMPLATE,
    )


def make_processor(tokenizer: Any, side: int, patch: int, **image_options: Any) -> Any:
    """A LlavaProcessor for square images.

    Args:
        tokenizer: with a chat template.
        side: of the image in pixels.
        patch: side of one vision token's part of it.
        image_options: of the image processor.
    """
    from transformers import CLIPImageProcessor, LlavaProcessor

    size = {"height": side, "width": side}
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size=size, **image_options
        ),
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which "default" leaves out again
        chat_template=tokenizer.chat_template,
    )


def make_llava(
    folder: Path,
    *,
    hidden_size: int = 128,
    layers: int = 6,
    image_size: int = 112,
    seed: int = 0,
    text: Mapping[str, Any] | None = None,
    vision: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Path:
    """Write a LlavaForConditionalGeneration and its processor to `folder`.

    Args:
        folder: made where missing.
        hidden_size: d of the language model.
        layers: decoder layers of the language model; the vision tower has half as many.
        image_size: side of the square image in pixels; (image_size / 14)^2 vision tokens.
        seed: of the random weights.
        text: what else differs in the configuration of the language model.
        vision: likewise of the vision tower.
        dtype: of the weights.
        device: where they are drawn.
    """
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    tokenizer = train_tokenizer()
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            **{
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": max(layers // 2, 2),
                "num_attention_heads": 4,
                "image_size": image_size,
                "patch_size": 14,
                "projection_dim": 64,
            }
            | dict(vision or {})
        ),
        text_config=LlamaConfig(
            **{
                "vocab_size": len(tokenizer),
                "hidden_size": hidden_size,
                "intermediate_size": 2 * hidden_size,
                "num_hidden_layers": layers,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "max_position_embeddings": 2048,
                "pad_token_id": tokenizer.pad_token_id,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
            }
            | dict(text or {})
        ),
        image_token_index=image_token,
        image_seq_length=(image_size // 14) ** 2,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration._from_config(config, dtype=dtype)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    make_processor(tokenizer, image_size, 14).save_pretrained(folder)
    return folder


def main() -> None:
    """Command line: write the demo's checkpoint to a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    defaults = inspect.signature(make_llava).parameters
    for name in ("hidden_size", "layers", "image_size", "seed"):
        parser.add_argument(f"--{name}", type=int, default=defaults[name].default)
    make_llava(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
