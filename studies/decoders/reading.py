"""How a small decoder learns to read captions: first to copy, then to answer and to tell in tables.

Answers are made with the heads that copy. Taught to copy and to answer at once, a decoder may answer two
to five of the seven kinds of questions and stay at chance on the others for thousands of steps; one that
copies first answers all of them some hundred steps later. Tables take the same look-ups at every word,
and kinds of questions that are not answered yet are asked more.
"""

import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from studies.alignment import gate, language, world

COLUMNS = ("size", "colour", "shape", "at")
"""What is told of a thing, by the name that the user gives it."""
TABLES = 2
"""In a conversation that has any."""
ANSWERED, UNANSWERED = 0.9, 3.0
"""Share of questions from which on a kind counts as answered, and how much more others are asked."""
PASSED = 0.97
"""Of the mean over kinds, on scenes of the training's kind, after which the learning rate falls."""
COPYING, CHECK, FALLING = 400, 100, 500
"""Steps of copying, between two checks, and over which the learning rate falls to zero."""
BATCH, LEARNING_RATE = 48, 2e-3


def weights(answered: Mapping[str, float]) -> dict[str, float]:
    """How often each kind is asked, by the share of its questions that is answered."""
    asked = {kind: 1.0 if answered[kind] >= ANSWERED else UNANSWERED for kind in world.KINDS}
    total = sum(asked.values())
    return {kind: share / total for kind, share in asked.items()}


def table(scene: world.Scene, random: np.random.Generator) -> tuple[str, str]:
    """What the user names of things, in some order, and what that is of each thing of a scene."""
    columns = random.permutation(COLUMNS)
    lines = []
    for i in random.permutation(len(scene)):
        thing = scene[i]
        words = {
            "size": world.SIZES[thing.size],
            "colour": world.COLOURS[thing.colour],
            "shape": world.SHAPES[thing.shape],
            "at": f"at {world.PLACES[thing.cell]}",
        }
        lines.append(" ".join(words[column] for column in columns))
    return " ".join(columns), " , ".join(lines) + " ."


def document(
    scene: world.Scene,
    random: np.random.Generator,
    encode: language.Encode,
    length: int,
    asked: Mapping[str, float],
    *,
    copying: float,
    brief: float,
    tables: float,
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
        tables: probability that the caption's things are told again in tables.
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
            for _ in range(TABLES) if random.random() < tables else ():
                named, told = table(scene, random)
                turns.append((named if turns else f"{text} {named}", told))
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
    # Room for the longest caption in a conversation, a table, and some questions.
    longest = " , ".join(["a small white triangle at bottomright"] * 4)
    length = 16 * (2 * len(encode(longest)) // 16 + 3)

    def batches(steps: int | None, **shares: float) -> Iterator[tuple[Tensor, Tensor]]:
        """As many as that, of documents of such shares; or until all kinds are answered."""
        asked = dict.fromkeys(world.KINDS, 1 / len(world.KINDS))
        for step in itertools.count() if steps is None else range(steps):
            if steps is None and step % CHECK == 0:
                answered = accuracy(model.eval(), encode, 100, seed=6, held_out=False)
                model.train()
                print(step, answered, flush=True)
                if sum(answered.values()) / len(answered) > PASSED:
                    return
                asked = weights(answered)
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
    copies = batches(COPYING, copying=0.95, brief=0.0, tables=0.3)
    answers = batches(None, copying=0.1, brief=0.0, tables=0.3)
    ending = batches(FALLING, copying=0.05, brief=0.2, tables=0.2)
    gate.train(parameters, copies, loss, LEARNING_RATE)
    gate.train(parameters, answers, loss, LEARNING_RATE)
    gate.train(parameters, ending, loss, LEARNING_RATE, falling=range(FALLING))
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
