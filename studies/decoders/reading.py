"""How a small decoder learns to read captions: by telling things in another order, and by questions.

Taught by questions alone, a decoder may answer six of the seven kinds and stay at chance on the last for
thousands of steps. Telling the things again in another order, and each from its place back to its size,
takes the same look-ups at every word; and kinds of questions that are not answered yet are asked more.
"""

import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from studies.alignment import gate, language, world

RETOLD = ("many things", "the things")
"""What the user says for the things in another order, and for each of them from its place back."""
ANSWERED, UNANSWERED = 0.9, 3.0
"""Share of questions from which on a kind counts as answered, and how much more others are asked."""
PASSED = 0.97
"""Of the mean over kinds, on scenes of the training's kind, after which the learning rate falls."""
CHECK, FALLING = 100, 500
"""Steps between two checks, and over which the learning rate falls to zero."""
BATCH, LEARNING_RATE = 32, 2e-3


def weights(answered: Mapping[str, float]) -> dict[str, float]:
    """How often each kind is asked, by the share of its questions that is answered."""
    asked = {kind: 1.0 if answered[kind] >= ANSWERED else UNANSWERED for kind in world.KINDS}
    total = sum(asked.values())
    return {kind: share / total for kind, share in asked.items()}


def retold(scene: world.Scene, random: np.random.Generator, how: str) -> str:
    """The things of a scene in another order, as a caption or each from its place back to its size."""
    things = [scene[i] for i in random.permutation(len(scene))]
    if how == RETOLD[0]:
        return world.caption(things)
    back = []
    for thing in things:
        size, colour, shape = (
            world.SIZES[thing.size],
            world.COLOURS[thing.colour],
            world.SHAPES[thing.shape],
        )
        back.append(f"at {world.PLACES[thing.cell]} {shape} {colour} a {size}")
    return " , ".join(back) + " ."


def document(
    scene: world.Scene,
    random: np.random.Generator,
    encode: language.Encode,
    length: int,
    asked: Mapping[str, float],
    *,
    copying: float,
    brief: float,
    retelling: float,
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
        retelling: probability that the caption's things are told again in other orders.
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
            for how in random.permutation(RETOLD) if random.random() < retelling else ():
                said = str(how) if turns else f"{text} {how}"
                turns.append((said, retold(scene, random, str(how))))
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
    # Room for the longest caption three times, and some questions.
    longest = " , ".join(["a small white triangle at bottomright"] * 4)
    length = 16 * (3 * len(encode(longest)) // 16 + 3)

    def batches(steps: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """As many as that, of all there is; or until all kinds are answered."""
        asked = dict.fromkeys(world.KINDS, 1 / len(world.KINDS))
        for step in itertools.count() if steps is None else range(steps):
            if steps is None and step % CHECK == 0:
                answered = accuracy(model.eval(), encode, 100, seed=6, held_out=False)
                model.train()
                print(step, answered, flush=True)
                if sum(answered.values()) / len(answered) > PASSED:
                    return
                asked = weights(answered)
            if steps is None:
                shares = {"copying": max(0.05, 0.5 - step / 1000), "brief": 0.0, "retelling": 0.7}
            else:
                shares = {"copying": 0.05, "brief": 0.2, "retelling": 0.2}
            documents = [
                document(next(scenes), random, encode, length, asked, **shares) for _ in range(BATCH)
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
