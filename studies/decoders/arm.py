"""One arm: pre-train a connector, measure everything that might tell, fine-tune, score answers."""

import copy
import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

import mir_task
from studies.alignment import language, train
from studies.decoders import moments
from studies.decoders.family import Examples, Family, Pair, Reader, Scenes, per_document
from studies.decoders.recipes import Decoder, Recipe, as_dict

CANDIDATES = 10
"""Captions among which retrieval by likelihood finds an image's own."""
WARMUP = 0.03


def family(decoder: Decoder, data: Path | None = None, device: str = "cpu") -> Family:
    """A decoder's images, captions, questions and outcome.

    Raises:
        SystemExit: "smollm2" without its data.
    """
    if decoder != "smollm2":
        return Scenes(decoder)
    if data is None:
        raise SystemExit("smollm2 reads real weights and pictures: give --data FOLDER (see the README)")
    from studies.decoders.real import Clipart

    return Clipart(data, device)


def products(device: str, *, bfloat16: bool) -> AbstractContextManager[Any]:
    """Inside, matrix products are in bfloat16, or in float32 as elsewhere; weights may be trained."""
    # Without this a layer would go on with the bfloat16 copy of its weights from before a step.
    settings = {"enabled": bfloat16, "cache_enabled": False}
    return torch.autocast(torch.device(device).type, torch.bfloat16, **settings)


@contextmanager
def compiled(decoder: nn.Module) -> Iterator[None]:
    """The decoder's forward is compiled inside: a minute, and then four tenths off a CPU's steps."""
    torch._dynamo.reset()  # of the arm before in this process
    decoder.forward = torch.compile(decoder.forward, dynamic=True)
    try:
        yield
    finally:
        del decoder.forward


def unlock(reader: Reader, part: str) -> None:
    """Freeze all but what a pre-training trains."""
    model = reader.llava
    model.requires_grad_(False)
    trained = [model.model.multi_modal_projector]
    layers = model.model.language_model.layers
    if part == "half":
        trained.extend(layers[: len(layers) // 2])
    if part == "decoder":
        trained += [model.model.language_model, model.lm_head]
    for module in trained:
        module.requires_grad_(True)


def pretrain(
    recipe: Recipe, family: Family, device: str, *, bfloat16: bool = False
) -> tuple[Reader, list[float]]:
    """An arm's model after pre-training, and the losses of its steps.

    Args:
        recipe: of the arm.
        family: of its decoder.
        device: on which it runs.
        bfloat16: whether products are in bfloat16, by a compiled decoder.
    """
    reader = Reader(family.model(recipe).to(device), family.image, family.at_once).eval()
    unlock(reader, recipe.unlocked)
    losses = []
    if recipe.pairs:
        examples = family.pairs((recipe.seed, 1), recipe.pairs, recipe.style, recipe.shuffled)
        decoder = reader.llava.model.language_model
        with products(device, bfloat16=bfloat16), compiled(decoder) if bfloat16 else nullcontext():
            losses = train.train(
                reader.train(),
                examples,
                seed=recipe.seed,
                epochs=recipe.epochs,
                learning_rate=recipe.learning_rate,
                warmup=WARMUP,
            )
    return reader.eval(), losses


def outcome(reader: Reader, recipe: Recipe, family: Family) -> dict[str, Any]:
    """Accuracy and answer loss after fine-tuning on the arm's own questions."""
    tuned = copy.deepcopy(reader)
    tuned.requires_grad_(True)
    tuned.llava.model.vision_tower.requires_grad_(False)
    questions = family.questions((recipe.seed, 2))
    train.train(
        tuned.train(), questions, seed=recipe.seed, learning_rate=family.sft_learning_rate, warmup=WARMUP
    )
    return family.score(tuned.eval())


def without_image(examples: Examples, image: int) -> Examples:
    """The same conversations without the placeholders."""
    conversations = []
    for ids, labels in examples.conversations:
        kept = [place for place, token in enumerate(ids) if token != image]
        conversations.append(([ids[place] for place in kept], [labels[place] for place in kept]))
    return Examples(examples.features, conversations)


def conditions(examples: Examples, image: int) -> dict[str, Examples]:
    """Documents with their own image, with the next one's, and without."""
    other = Examples(examples.features.roll(-1, 0), examples.conversations)
    return {"own": examples, "other": other, "none": without_image(examples, image)}


@torch.no_grad()
def crossed_losses(reader: Reader, examples: Examples, drawn: np.ndarray, batch: int = 50) -> np.ndarray:
    """Mean loss a token of other documents' captions after each document's image [captions, documents].

    What stands before a caption is the same in all documents but for the image, and runs once.

    Args:
        reader: the pre-trained model.
        examples: images and captions.
        drawn: of which document each caption is [captions, documents].
        batch: documents that run at a time.

    Raises:
        ValueError: something else than the image differs before the captions.
    """
    decoder, embed = reader.llava.model.language_model, reader.llava.get_input_embeddings()
    labels = examples.conversations[0][1]
    start = next(place for place, label in enumerate(labels) if label != language.IGNORED)
    prompts = [ids[:start] for ids, _ in examples.conversations]
    if any(prompt != prompts[0] for prompt in prompts):
        raise ValueError("captions stand after different prompts")
    captions = [(ids[start:], labels[start:]) for ids, labels in examples.conversations]
    found = np.zeros((len(drawn), len(examples)))
    for rows in reader.batches(len(examples), batch):
        inputs = torch.tensor([prompts[row] for row in rows])
        before = reader.states(examples.features[list(rows)], inputs, use_cache=True)
        cache, last = before.past_key_values, before.last_hidden_state[:, -1:]
        for number, documents in enumerate(drawn):
            said, wanted = language.batch([captions[documents[row]] for row in rows])
            embedded = embed(said.to(last.device))
            states = decoder(inputs_embeds=embedded, past_key_values=cache).last_hidden_state
            cache.crop(-said.shape[1])
            losses, _, of = reader.losses_after(torch.cat([last, states[:, :-1]], 1), wanted)
            found[number, rows] = np.bincount(of.cpu(), losses.cpu()) / np.bincount(of.cpu())
    return found


def retrieval(reader: Reader, examples: Examples, alone: Sequence[Sequence[float]]) -> dict[str, float]:
    """Share of images whose own caption is the most likely a token of ten, as it is and prior-corrected.

    Args:
        reader: the pre-trained model.
        examples: images and captions.
        alone: losses of each caption's tokens without an image.
    """
    places = np.arange(len(examples))
    # Every image with the caption that stands 7 x `step` documents further on: its own at step 0.
    drawn = np.stack([(places + 7 * step) % len(examples) for step in range(CANDIDATES)])
    losses = crossed_losses(reader, examples, drawn)
    prior = np.array([np.mean(each) for each in alone])
    return {
        "retrieval": float((losses.argmin(0) == 0).mean()),
        "retrieval_corrected": float(((losses - prior[drawn]).argmin(0) == 0).mean()),
    }


def caption_figures(
    reader: Reader, family: Family, style: str
) -> tuple[dict[str, float], dict[str, Any]]:
    """Caption loss, gain and retrieval on captions of a style; and the loss of every token."""
    _, examples = family.held_out(style)
    sets = conditions(examples, family.image)
    losses = {name: per_document(reader, one)[0] for name, one in sets.items()}
    means = {name: float(np.mean(np.concatenate(each))) for name, each in losses.items()}
    gains = [np.mean(b) - np.mean(a) for a, b in zip(losses["own"], losses["other"], strict=True)]
    figures = {
        "caption_loss": means["own"],
        "caption_gain": means["other"] - means["own"],
        "caption_gain_stderr": float(np.std(gains, ddof=1) / len(gains) ** 0.5),
        "gain_over_none": means["none"] - means["own"],
        **retrieval(reader, examples, losses["none"]),
    }
    return figures, losses


def mir(reader: Reader, family: Family, pairs: Sequence[Pair]) -> dict[str, Any]:
    """MIR and all that comes with it, by the product's own function on pixels."""
    result = mir_task.measure(
        reader.llava, family.processor(), pairs, bars=False, caption_gain=True, extras=["cka"]
    )
    return result.to_dict()


def run(
    recipe: Recipe,
    family: Family,
    statistics: Path,
    device: str = "cpu",
    *,
    bfloat16: bool = False,
) -> dict[str, Any]:
    """Run an arm.

    Args:
        recipe: of it.
        family: of its decoder.
        statistics: folder of the sufficient statistics and the connectors.
        device: on which it runs.
        bfloat16: whether training, captions and answers have products in bfloat16; MIR and the
            statistics are in float32 always.

    Returns:
        What goes into its line of JSON.
    """
    started = [time.perf_counter()]

    def lap() -> float:
        started.append(time.perf_counter())
        return round(started[-1] - started[-2], 2)

    seconds = {}
    reader, losses = pretrain(recipe, family, device, bfloat16=bfloat16)
    seconds["pretraining"] = lap()
    pairs, examples = family.held_out("full")
    values = mir(reader, family, pairs)
    seconds["mir"] = lap()
    styles = dict.fromkeys(["full", recipe.style, family.styles[1]])
    with products(device, bfloat16=bfloat16):
        captions = {style: caption_figures(reader, family, style) for style in styles}
    seconds["captions"] = lap()
    path = statistics / f"{recipe.name}.npz"
    moments.write(path, reader, conditions(examples, family.image))
    token_losses = {
        f"{style}.{name}": np.concatenate(each).astype(np.float32)
        for style, (_, sets) in captions.items()
        for name, each in sets.items()
    }
    np.savez_compressed(statistics / f"{recipe.name}.losses.npz", **token_losses)
    save_file(
        {
            name: each.contiguous()
            for name, each in reader.llava.model.multi_modal_projector.state_dict().items()
        },
        statistics / f"{recipe.name}.safetensors",
    )
    seconds["statistics"] = lap()
    with products(device, bfloat16=bfloat16):
        scored = outcome(reader, recipe, family)
    seconds["sft"] = lap()
    bits = {key: "".join(map(str, scored.pop(key))) for key in list(scored) if key.endswith("bits")}
    tail = losses[-max(len(losses) // 10, 1) :]
    return {
        "recipe": as_dict(recipe),
        "steps": len(losses),
        "training_loss": float(np.mean(tail)) if tail else None,
        "mir": values,
        "captions": {style: figures for style, (figures, _) in captions.items()},
        "outcome": {**scored, **bits},
        "statistics": {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(statistics.glob(f"{recipe.name}.*"))
        },
        "seconds": seconds,
        "bfloat16": bfloat16,
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
    }
