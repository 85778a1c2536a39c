"""The two parts that every model of the family shares, and the gate that they have to pass.

`python -m studies.alignment.gate` checks both on unseen scenes; `--train` makes one of them first: a
decoder that, given a caption as text, answers questions about it (half an hour on a core), or a vision
encoder that knows of each patch what stands on it (two minutes).
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPVisionModel, LlamaForCausalLM

from studies.alignment import language, models, world

WEIGHTS = Path(__file__).with_name("weights")
DECODER_FILE, ENCODER_FILE = WEIGHTS / "decoder.safetensors", WEIGHTS / "encoder.safetensors"
DECODER_GATE, ENCODER_GATE = 0.95, 0.99
FEATURES = -2
"""The encoder's layer that LLaVA takes, whose output the per-patch task reads."""
_CLASSES = (len(world.SHAPES) + 1, len(world.COLOURS) + 1, len(world.SIZES) + 1, 9)
"""Of the per-patch task: shape, colour and size with one class for none, and the cell."""
_LENGTH = 136


def decoder_document(
    scene: world.Scene, random: np.random.Generator, copying: float, brief: float
) -> tuple[list[int], list[int]]:
    """A conversation about a caption.

    Args:
        scene: that the caption is of.
        random: draws all else.
        copying: probability of random words to repeat in its place.
        brief: probability of a caption of less detail, to repeat.
    """
    if random.random() < copying:
        words = language.random_words(random, int(random.integers(4, 20)))
        return language.conversation([(words, words)])
    things = [scene[i] for i in random.permutation(len(scene))]
    detail = random.choice(["full", "colours", "shapes"], p=[1 - brief, brief / 2, brief / 2])
    text = world.caption(things, detail)
    turns = [("", text)] if detail != "full" or random.random() < 0.4 else []
    if detail == "full":
        kinds = random.choice(world.KINDS, 8)
        asked = [world.question(scene, kind, random) for kind in kinds]
        turns += [(question.text, question.answer) for question in asked]
    # The caption stands where an image will: in the first turn, before its question.
    turns[0] = (f"{text} {turns[0][0]}", turns[0][1])
    return language.conversation(turns)


def train_decoder(
    start: dict[str, Tensor] | None = None, batch: int = 48, learning_rate: float = 2e-3
) -> LlamaForCausalLM:
    """A decoder that reads captions, trained on conversations about them alone.

    Until it passes the gate it sees full captions and random words to copy: the heads that copy are
    what the answers are then made with, and come first. Then captions of less detail come in, and the
    learning rate falls to zero.

    Args:
        start: weights that have passed the gate, to go on from.
        batch: conversations a step.
        learning_rate: at its highest.
    """
    torch.manual_seed(0)
    model = LlamaForCausalLM(models.DECODER)
    model.set_attn_implementation("eager")  # the fused one is several times slower on a CPU
    if start is not None:
        model.load_state_dict(start)
    forward = torch.compile(model, dynamic=False)
    random, scenes = np.random.default_rng(0), world.scenes(1, held_out=False)

    def batches(steps: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """As many as that; or until the gate is passed."""
        for step in itertools.count() if steps is None else range(steps):
            if steps is None and step % 250 == 0 and _passes(model):
                return
            copying, brief = (max(0.05, 0.5 - step / 3000), 0.0) if steps is None else (0.05, 0.2)
            documents = [decoder_document(next(scenes), random, copying, brief) for _ in range(batch)]
            ids, labels = language.batch(documents)
            room = _LENGTH - ids.shape[1]
            yield (
                nn.functional.pad(ids, (0, room), value=language.PAD).contiguous(),
                nn.functional.pad(labels, (0, room), value=language.IGNORED).contiguous(),
            )

    def loss(ids: Tensor, labels: Tensor) -> Tensor:
        return forward(input_ids=ids, labels=labels, use_cache=False).loss

    parameters = list(model.parameters())
    if start is None:
        train(parameters, batches(None), loss, learning_rate)
    train(parameters, batches(500), loss, learning_rate, falling=range(500))
    return model


def _passes(model: LlamaForCausalLM) -> bool:
    kinds = decoder_accuracy(model.eval(), 100, seed=6, held_out=False)
    model.train()
    print(kinds, flush=True)
    return sum(kinds.values()) / len(kinds) > 0.97


def train_encoder(
    steps: int = 1500, batch: int = 64, images: int = 20_000
) -> tuple[CLIPVisionModel, nn.Module]:
    """An encoder and the linear map from its features to the classes of the per-patch task."""
    torch.manual_seed(0)
    model, head = CLIPVisionModel(models.ENCODER), nn.Linear(models.ENCODER.hidden_size, sum(_CLASSES))
    pixels, labels = patches(3, images, held_out=False)
    generator = torch.Generator().manual_seed(0)
    rows = (torch.randint(images, (batch,), generator=generator) for _ in range(steps))

    def loss(chosen: Tensor, wanted: Tensor) -> Tensor:
        logits = _patch_logits(model, head, chosen)
        return sum(
            nn.functional.cross_entropy(part.flatten(0, 1), wanted[..., i].flatten())
            for i, part in enumerate(logits)
        )  # type: ignore[return-value]

    batches = ((pixels[row], labels[row]) for row in rows)
    train(
        [*model.parameters(), *head.parameters()], batches, loss, 2e-3, falling=range(steps // 2, steps)
    )
    return model, head


def train(
    parameters: list[Tensor],
    batches: Iterable[Any],
    loss: Callable[..., Tensor],
    learning_rate: float,
    falling: range = range(0),
) -> None:
    """Train by AdamW; the learning rate falls to zero over the steps `falling`."""
    torch.set_float32_matmul_precision("medium")  # bfloat16 products where the processor has them
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    started = time.perf_counter()
    for step, inputs in enumerate(batches):
        factor = min(1.0, (step + 1) / 100)
        if step in falling:
            factor *= 1 - (step - falling.start) / len(falling)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * factor
        value = loss(*inputs)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(
                f"step {step}: loss {float(value.detach()):.4f}, {time.perf_counter() - started:.0f} s",
                flush=True,
            )


def patches(seed: int, number: int, *, held_out: bool) -> tuple[Tensor, Tensor]:
    """Images [n, side, side, 3] and what stands on each of their patches [n, patches, 4]."""
    scenes = list(itertools.islice(world.scenes(seed, held_out=held_out), number))
    images = np.stack([world.render(scene, [seed, row]) for row, scene in enumerate(scenes)])
    labels = np.empty((number, 3, 3, 4), dtype=np.int64)
    labels[..., :3] = [each - 1 for each in _CLASSES[:3]]
    labels[..., 3] = np.arange(9).reshape(3, 3)
    for row, scene in enumerate(scenes):
        for thing in scene:
            labels[row, *divmod(thing.cell, 3), :3] = thing.shape, thing.colour, thing.size
    repeat = world.CELL // world.PATCH
    labels = labels.repeat(repeat, 1).repeat(repeat, 2).reshape(number, models.TOKENS, 4)
    return torch.from_numpy(images), torch.from_numpy(labels)


def _patch_logits(model: CLIPVisionModel, head: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    states = model(models.pixels(images), output_hidden_states=True).hidden_states
    return head(states[FEATURES][:, 1:]).split(_CLASSES, -1)


@torch.no_grad()
def decoder_accuracy(
    model: LlamaForCausalLM, number: int = 500, *, seed: int = 5, held_out: bool = True
) -> dict[str, float]:
    """Share of right answers to questions about captions of scenes, by kind."""
    random, right = np.random.default_rng([seed, 1]), dict.fromkeys(world.KINDS, 0)
    for scene in itertools.islice(world.scenes(seed, held_out=held_out), number):
        for question in world.questions(scene, random):
            text = f"<s> USER {world.caption(scene)} {question.text} ASSISTANT"
            logits = model(torch.tensor([language.encode(text)])).logits[0, -1]
            right[question.kind] += language.WORDS[int(logits.argmax())] == question.answer
    return {kind: count / number for kind, count in right.items()}


@torch.no_grad()
def encoder_accuracy(model: CLIPVisionModel, head: nn.Module, number: int = 500) -> float:
    """Share of patches of unseen images of which shape, colour, size and cell are all right."""
    images, labels = patches(4, number, held_out=True)
    found = torch.stack([part.argmax(-1) for part in _patch_logits(model, head, images)], -1)
    return float((found == labels).all(-1).float().mean())


def load() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State dicts of the decoder and of the encoder."""
    encoder = load_file(ENCODER_FILE)
    return load_file(DECODER_FILE), {k: v for k, v in encoder.items() if not k.startswith("head.")}


def check() -> dict[str, Any]:
    """Accuracies of the kept weights, on unseen scenes."""
    decoder, encoder = LlamaForCausalLM(models.DECODER).eval(), CLIPVisionModel(models.ENCODER).eval()
    head = nn.Linear(models.ENCODER.hidden_size, sum(_CLASSES))
    for module, weights in zip((decoder, encoder), load(), strict=True):
        module.load_state_dict(weights)
    kept = load_file(ENCODER_FILE)
    head.load_state_dict({name: kept[f"head.{name}"] for name in ("weight", "bias")})
    kinds = decoder_accuracy(decoder)
    return {
        "decoder": sum(kinds.values()) / len(kinds),
        "decoder_by_kind": kinds,
        "encoder": encoder_accuracy(encoder, head),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", choices=["decoder", "encoder"], help="make this part first")
    parser.add_argument("--start", type=Path, help="weights of a decoder that passes, to go on from")
    options = parser.parse_args()
    part = options.train
    WEIGHTS.mkdir(exist_ok=True)
    if part == "decoder":
        start = load_file(options.start) if options.start else None
        save_file(train_decoder(start).state_dict(), DECODER_FILE)
    if part == "encoder":
        model, head = train_encoder()
        parts = {f"head.{name}": value for name, value in head.state_dict().items()}
        save_file({**model.state_dict(), **parts}, ENCODER_FILE)
    torch.set_float32_matmul_precision("highest")
    found = check()
    print(json.dumps(found, indent=1))
    if found["decoder"] < DECODER_GATE or found["encoder"] < ENCODER_GATE:
        sys.exit(f"below the gate: decoder {DECODER_GATE:.0%}, encoder {ENCODER_GATE:.0%}")


if __name__ == "__main__":
    main()
