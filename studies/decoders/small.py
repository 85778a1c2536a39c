"""Two small decoders that differ from the first study's in width, depth and tokenizer, and their gate.

`python -m studies.decoders.small` checks both on unseen scenes; `--train deep` or `--train wide` makes
one from its start, as `studies.decoders.reading` says.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from studies.alignment import gate, language, world
from studies.decoders import reading

WEIGHTS = Path(__file__).with_name("weights")
Name = Literal["deep", "wide"]
NAMES: tuple[Name, ...] = ("deep", "wide")
_SHAPES = {
    "deep": {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 8},
    "wide": {"hidden_size": 192, "intermediate_size": 384, "num_hidden_layers": 3},
}
_HEADS = {"deep": 4, "wide": 6}
_PIECES = 175
"""Entries of the deep decoder's tokenizer: 1.1 tokens a word, one each of shapes, colours and sizes."""
_PHRASES = r"a (?:small|large)|at \w+|is there a|is the|how many things|\S+"
"""What the wide decoder's tokenizer makes one token of: 0.7 tokens a word."""


def _texts() -> Iterable[str]:
    """Captions and questions."""
    random = np.random.default_rng(0)
    for scene in itertools.islice(world.scenes(1, held_out=False), 3000):
        yield f"USER {world.caption(scene)} ASSISTANT"
        for question in world.questions(scene, random):
            yield f"USER {question.text} ASSISTANT {question.answer}"
    yield from language.WORDS[len(language.SPECIAL_TOKENS) :]


def make_tokenizer(name: Name) -> Any:
    """Tokenizer of a decoder: byte-pair pieces of words for "deep", phrases for "wide"."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors, trainers

    special = list(language.SPECIAL_TOKENS)
    if name == "deep":
        made = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        pieces = trainers.BpeTrainer(
            vocab_size=_PIECES, special_tokens=special, end_of_word_suffix="</w>", show_progress=False
        )
        made.train_from_iterator(_texts(), pieces)
    else:
        split = pre_tokenizers.Split(Regex(_PHRASES), behavior="removed", invert=True)
        found = {phrase for text in _texts() for phrase, _ in split.pre_tokenize_str(text)}
        ids = {phrase: number for number, phrase in enumerate([*special, *sorted(found)])}
        made = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
        made.pre_tokenizer = split
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", language.BOS)]
    )
    return made


@cache
def tokenizer(name: Name) -> Any:
    """The tokenizer that is kept, as transformers takes it."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(WEIGHTS / f"{name}.json")),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
        chat_template=language.CHAT_TEMPLATE,
    )


class Encode:
    """Gives the ids of a text by a decoder's tokenizer; those of a text seen before from memory."""

    def __init__(self, name: Name) -> None:
        self._tokenizer, self._known = tokenizer(name), {}

    def __call__(self, text: str) -> list[int]:
        """Ids, without the start of a conversation."""
        if text not in self._known:
            self._known[text] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._known[text]


def config(name: Name) -> LlamaConfig:
    """Configuration of a decoder."""
    return LlamaConfig(
        vocab_size=len(tokenizer(name)),
        num_attention_heads=_HEADS[name],
        num_key_value_heads=_HEADS[name],
        max_position_embeddings=512,
        initializer_range=0.05,
        pad_token_id=language.PAD,
        bos_token_id=language.BOS,
        eos_token_id=language.EOS,
        tie_word_embeddings=False,
        **_SHAPES[name],
    )


def load(name: Name) -> LlamaForCausalLM:
    """A trained decoder, in float32."""
    model = LlamaForCausalLM(config(name)).eval()
    model.load_state_dict(load_file(WEIGHTS / f"{name}.safetensors"))
    return model


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", choices=NAMES, help="make this decoder from its start first")
    trained = parser.parse_args().train
    if trained:
        WEIGHTS.mkdir(exist_ok=True)
        # The ids of byte-pair pieces that are equally frequent change from run to run.
        if not (WEIGHTS / f"{trained}.json").is_file():
            make_tokenizer(trained).save(str(WEIGHTS / f"{trained}.json"))
        made = reading.train_decoder(config(trained), Encode(trained))
        save_file(made.state_dict(), WEIGHTS / f"{trained}.safetensors")
    torch.set_float32_matmul_precision("highest")
    below = []
    for name in [trained] if trained else NAMES:
        kinds = reading.accuracy(load(name), Encode(name), 500, seed=5, held_out=True)
        mean = sum(kinds.values()) / len(kinds)
        print(json.dumps({"decoder": name, "accuracy": mean, "by_kind": kinds}), flush=True)
        below += [name] if mean < gate.DECODER_GATE else []
    if below:
        sys.exit(f"below the gate of {gate.DECODER_GATE:.0%}: {', '.join(below)}")


if __name__ == "__main__":
    main()
