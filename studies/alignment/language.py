"""The words of the world as tokens, and conversations about scenes as token ids."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from studies.alignment import world

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
_OTHERS = (
    "USER ASSISTANT a , . at is are there what where how many things colour shape size the"
    " nothing yes no"
)
WORDS = tuple(
    dict.fromkeys(
        [
            *SPECIAL_TOKENS,
            *_OTHERS.split(),
            *world.SIZES,
            *world.COLOURS,
            *world.SHAPES,
            *world.PLACES,
            *world.COUNTS,
        ]
    )
)
IDS = {word: number for number, word in enumerate(WORDS)}
UNKNOWN, BOS, EOS, PAD, IMAGE = (IDS[word] for word in SPECIAL_TOKENS)
IGNORED = -100
Encode = Callable[[str], list[int]]
"""Gives the ids of a text, without any that mark its start or end."""

# One turn a line: the image or the words in its place, then a question or nothing, then the answer.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ 'USER ' if message['role'] == 'user' else 'ASSISTANT ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{{ '<image> ' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% endif %}"
    "{{ ' ' + eos_token + ' ' if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT' }}{% endif %}"
)


def encode(text: str) -> list[int]:
    """Ids of the words of a text."""
    return [IDS[word] for word in text.split()]


def conversation(
    turns: Sequence[tuple[str, str]], encode: Encode = encode
) -> tuple[list[int], list[int]]:
    """Ids of a conversation, and its labels: those of the assistant's words, `IGNORED` elsewhere.

    Args:
        turns: what the user says, and what the assistant answers.
        encode: gives the ids of a text; one a word by default.
    """
    ids, labels = [BOS], [IGNORED]
    for user, assistant in turns:
        asked = encode(f"USER {user} ASSISTANT")
        answered = [*encode(assistant), EOS]
        ids += [*asked, *answered]
        labels += [IGNORED] * len(asked) + answered
    return ids, labels


def batch(conversations: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """Ids and labels [batch, longest], padded on the right."""
    longest = max(len(ids) for ids, _ in conversations)
    ids = torch.full((len(conversations), longest), PAD)
    labels = torch.full((len(conversations), longest), IGNORED)
    for row, (one, its_labels) in enumerate(conversations):
        ids[row, : len(one)] = torch.tensor(one)
        labels[row, : len(one)] = torch.tensor(its_labels)
    return ids, labels


def random_words(random: np.random.Generator, number: int) -> str:
    """Words of the world in no order, to be copied."""
    return " ".join(random.choice(WORDS[len(SPECIAL_TOKENS) + 2 :], number))
