"""How a small decoder learns to read captions: one kind of question after the other.

Asked all kinds alike, a decoder may answer six of the seven and stay at chance on the last for thousands
of steps. So a kind comes in when those before it are answered, and is asked most until it is answered.
"""

import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from studies.alignment import gate, language, world

ORDER = ("where", "shape", "exists", "count", "colour", "at", "size")
"""Of the kinds of questions: next to what they ask about first."""
OPEN = 2
"""Kinds not yet answered that are asked at a time."""
ANSWERED = 0.9
PASSED = 0.97
"""Of the mean over kinds, on scenes of the training's kind, after which the learning rate falls."""
CHECK, FALLING = 100, 500
"""Steps between two checks, and over which the learning rate falls to zero."""
BATCH, LEARNING_RATE = 40, 2e-3


def weights(answered: Mapping[str, float]) -> dict[str, float]:
    """How often each kind is asked, by the share of its questions that is answered."""
    waiting = [kind for kind in ORDER if answered[kind] < ANSWERED]
    asked = {kind: 1.0 for kind in ORDER if kind not in waiting}
    asked |= {kind: max(len(asked), 1.0) for kind in waiting[:OPEN]}
    total = sum(asked.values())
    return {kind: share / total for kind, share in asked.items()}


def document(
    scene: world.Scene,
    random: np.random.Generator,
    encode: language.Encode,
    length: int,
    asked: Mapping[str, float],
    *,
    copying: float,
    brief: float,
) -> tuple[list[int], list[int]]:
    """Ids and labels of a conversation about a caption, as long as fits.

    Args:
        scene: that the caption is of.
        random: draws all else.
        encode: gives the ids of a text.
        length: tokens that fit.
        asked: how often each kind of question is asked.
        copying: probability of random words to repeat in place of a caption.
        brief: probability of a caption of less detail, to repeat.
    """
    kind = random.random()
    if kind < copying:
        words = language.random_words(random, int(random.integers(4, 16)))
        turns = [(words, words)]
    else:
        things = [scene[i] for i in random.permutation(len(scene))]
        if kind < copying + brief:
            text = world.caption(things, random.choice(["colours", "shapes"]))
            turns = [(text, text)]
        else:
            text = world.caption(things)
            turns = [(text, text)] if random.random() < 0.1 else []
            kinds, shares = list(asked), list(asked.values())
            for drawn in random.choice(kinds, 30, p=shares):
                question = world.question(scene, str(drawn), random)
                # The caption stands where an image will: in the first turn, before its question.
                turn = (question.text if turns else f"{text} {question.text}", question.answer)
                if len(language.conversation([*turns, turn], encode)[0]) > length:
                    break
                turns.append(turn)
    ids, labels = language.conversation(turns, encode)
    return ids[:length], labels[:length]


def train_decoder(config: LlamaConfig, encode: language.Encode) -> LlamaForCausalLM:
    """A decoder that reads captions, trained from its start on conversations about them alone.

    Args:
        config: of the decoder.
        encode: gives the ids of a text.
    """
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")  # the fused one is several times slower on a CPU
    forward = torch.compile(model, dynamic=False)
    random, scenes = np.random.default_rng(0), world.scenes(1, held_out=False)
    # Room for the longest caption twice, and a question.
    longest = " , ".join(["a small white triangle at bottomright"] * 4)
    length = 16 * (2 * len(encode(longest)) // 16 + 2)

    def batches(steps: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """As many as that, of all there is; or until all kinds are answered."""
        asked = dict.fromkeys(ORDER, 1 / len(ORDER))
        for step in itertools.count() if steps is None else range(steps):
            if steps is None and step % CHECK == 0:
                answered = accuracy(model.eval(), encode, 100, seed=6, held_out=False)
                model.train()
                print(step, answered, flush=True)
                if sum(answered.values()) / len(answered) > PASSED:
                    return
                asked = weights(answered)
            copying, brief = (max(0.05, 0.5 - step / 2000), 0.0) if steps is None else (0.05, 0.2)
            documents = [
                document(next(scenes), random, encode, length, asked, copying=copying, brief=brief)
                for _ in range(BATCH)
            ]
            ids, labels = language.batch(documents)
            room = length - ids.shape[1]
            yield (
                nn.functional.pad(ids, (0, room), value=language.PAD).contiguous(),
                nn.functional.pad(labels, (0, room), value=language.IGNORED).contiguous(),
            )

    def loss(ids: Tensor, labels: Tensor) -> Tensor:
        return forward(input_ids=ids, labels=labels, use_cache=False).loss

    parameters = list(model.parameters())
    gate.train(parameters, batches(None), loss, LEARNING_RATE)
    gate.train(parameters, batches(FALLING), loss, LEARNING_RATE, falling=range(FALLING))
    return model


@torch.no_grad()
def accuracy(
    model: LlamaForCausalLM, encode: language.Encode, number: int, *, seed: int, held_out: bool
) -> dict[str, float]:
    """Share of questions about captions, by kind, of whose answer every token is the most likely.

    Args:
        model: the decoder.
        encode: gives the ids of a text.
        number: of scenes, each with a question of every kind.
        seed: of the scenes.
        held_out: whether they are among those kept from training.
    """
    random, right = np.random.default_rng([seed, 1]), dict.fromkeys(world.KINDS, 0)
    for scene in itertools.islice(world.scenes(seed, held_out=held_out), number):
        asked = world.questions(scene, random)
        text = world.caption(scene)
        ids, labels = language.batch(
            [language.conversation([(f"{text} {each.text}", each.answer)], encode) for each in asked]
        )
        likely = model(ids, attention_mask=(ids != language.PAD).long()).logits[:, :-1].argmax(-1)
        wanted = labels[:, 1:]
        # The end of the turn is labelled too, and does not count.
        counted = (wanted != language.IGNORED) & (wanted != language.EOS)
        hits = ((likely == wanted) | ~counted).all(1)
        for question, hit in zip(asked, hits.tolist(), strict=True):
            right[question.kind] += hit
    return {kind: count / number for kind, count in right.items()}
