"""One arm of the study: pre-train a connector, measure MIR, fine-tune at two budgets, score answers."""

import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import mir_task
from mir_task import moca
from studies.alignment import connectors, gate, language, models, world

BATCH = 16
SFT_BUDGETS = (1000, 4000)
"""Questions of the fine-tunings."""
SFT_LEARNING_RATE = 5e-4
EVALUATION = (2024,)
"""Seed of the held-out scenes."""
EVALUATED = 200
"""Held-out scenes: MIR is measured on all of them, and each has a question of every kind."""
CURVE = (0.0, 0.03, 0.1, 0.2, 0.4, 0.7)
"""Shares of a pre-training of (a) at which MIR is measured, beside its end."""

Unlocked = Literal["connector", "encoder", "half", "decoder"]
"""Trained in pre-training: the connector; and the encoder; and half of the decoder's layers; and all."""


@dataclass(frozen=True)
class Arm:
    """A pre-training. Two arms of the same settings are one."""

    seed: int
    pairs: int = 4000
    epochs: int = 1
    detail: world.Detail = "full"
    learning_rate: float = 1e-3
    warmup: float = 0.03
    unlocked: Unlocked = "connector"
    connector: connectors.Kind = "mlp"
    scale: float = 1.0
    matched_norm: bool = False
    moca: bool = False

    @property
    def name(self) -> str:
        """Of the arm's file: its seed, its pairs, and whatever is not as in the others."""
        parts = [f"pairs{self.pairs}"]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in ("seed", "pairs") and value != field.default:
                parts.append(field.name if value is True else f"{field.name}_{value}")
        return "-".join([*parts, f"seed{self.seed}"])

    def model(self) -> Any:
        """The arm's LLaVA before any training."""
        model = models.make_llava(
            *gate.load(),
            seed=self.seed,
            connector=self.connector,
            scale=self.scale,
            matched_norm=self.matched_norm,
        )
        if self.moca:
            moca.apply(model)
        return model

    def pretrained(self, checkpoints: Path) -> Any:
        """The arm's LLaVA after pre-training, whose connector alone was kept.

        Raises:
            ValueError: more than the connector was trained.
        """
        if self.unlocked != "connector" or self.moca:
            raise ValueError(f"of {self.name} more was trained than the connector that is kept")
        model = self.model()
        kept = load_file(checkpoints / f"{self.name}.safetensors")
        model.model.multi_modal_projector.load_state_dict(kept)
        return model


class Examples:
    """Images and conversations about them, in memory."""

    def __init__(self, images: np.ndarray, conversations: Sequence[tuple[list[int], list[int]]]) -> None:
        self.images = torch.from_numpy(images)
        self.conversations = conversations

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Arguments of the model's forward."""
        ids, labels = language.batch([self.conversations[row] for row in rows])
        return {
            "pixel_values": models.pixels(self.images[list(rows)]),
            "input_ids": ids,
            "attention_mask": (ids != language.PAD).long(),
            "labels": labels,
        }


PLACEHOLDERS = " ".join(["<image>"] * models.TOKENS)


def scenes(seed: Sequence[int], number: int, *, held_out: bool = False) -> list[world.Scene]:
    """Some scenes."""
    return list(itertools.islice(world.scenes(seed, held_out=held_out), number))


def images(drawn: Sequence[world.Scene], seed: Sequence[int]) -> np.ndarray:
    """Images [n, side, side, 3] of scenes."""
    return np.stack([world.render(scene, [*seed, row]) for row, scene in enumerate(drawn)])


def captioned(drawn: Sequence[world.Scene], seed: Sequence[int], detail: world.Detail) -> Examples:
    """Images and their captions."""
    texts = [world.caption(scene, detail) for scene in drawn]
    return Examples(images(drawn, seed), [language.conversation([(PLACEHOLDERS, t)]) for t in texts])


def asked(drawn: Sequence[world.Scene], seed: Sequence[int]) -> Examples:
    """Images with a question of a random kind each."""
    random = np.random.default_rng([*seed, 1])
    chosen = [world.question(scene, random.choice(world.KINDS), random) for scene in drawn]
    turns = [[(f"{PLACEHOLDERS} {question.text}", question.answer)] for question in chosen]
    return Examples(images(drawn, seed), [language.conversation(each) for each in turns])


def train(
    model: nn.Module,
    examples: Examples,
    *,
    seed: int,
    epochs: int = 1,
    learning_rate: float,
    warmup: float,
    at_step: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Train what is not frozen, by AdamW with warm-up and cosine; the loss of every step.

    Args:
        model: whose frozen parameters need no gradients.
        examples: in batches of `BATCH`, in another order every epoch.
        seed: of the orders.
        epochs: over the examples.
        learning_rate: at its highest.
        warmup: share of the steps.
        at_step: called with the number of steps done and that of all, before each step.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    random = np.random.default_rng(seed)
    orders = [random.permutation(len(examples)) for _ in range(epochs)]
    batches = [order[i : i + BATCH] for order in orders for i in range(0, len(order), BATCH)]
    rising = max(math.ceil(warmup * len(batches)), 1)
    losses = []
    for step, rows in enumerate(batches):
        if at_step is not None:
            at_step(step, len(batches))
        share = (step - rising) / max(len(batches) - rising, 1)
        factor = (step + 1) / rising if step < rising else (1 + math.cos(math.pi * share)) / 2
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * factor
        loss = model(**examples.batch(rows), use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def unlock(model: Any, unlocked: Unlocked) -> None:
    """Freeze all but what a pre-training trains."""
    model.requires_grad_(False)
    trained = [model.model.multi_modal_projector]
    layers = model.model.language_model.layers
    if unlocked == "encoder":
        trained.append(model.model.vision_tower)
    if unlocked == "half":
        trained.extend(layers[: len(layers) // 2])
    if unlocked == "decoder":
        trained += [model.model.language_model, model.lm_head]
    for module in trained:
        module.requires_grad_(True)
    for name, parameter in model.named_parameters():
        if ".moca." in name:
            parameter.requires_grad_(True)


def accuracy(model: Any, drawn: Sequence[world.Scene], seed: Sequence[int]) -> dict[str, float]:
    """Share of questions whose most likely next word is the answer, by kind and over all."""
    random = np.random.default_rng([*seed, 1])
    questions = [world.questions(scene, random) for scene in drawn]
    pixel_values = models.pixels(torch.from_numpy(images(drawn, seed)))
    scores = {}
    for number, kind in enumerate(world.KINDS):
        right = 0
        for start in range(0, len(drawn), 100):
            part = [each[number] for each in questions[start : start + 100]]
            prompts = [language.encode(f"<s> USER {PLACEHOLDERS} {q.text} ASSISTANT") for q in part]
            # All questions of a kind have as many words.
            ids = torch.tensor(prompts)
            with torch.no_grad():
                logits = model(
                    input_ids=ids, pixel_values=pixel_values[start : start + 100], logits_to_keep=1
                ).logits[:, -1]
            said = [language.WORDS[i] for i in logits.argmax(1).tolist()]
            right += sum(word == q.answer for word, q in zip(said, part, strict=True))
        scores[kind] = right / len(drawn)
    return {**scores, "all": sum(scores.values()) / len(scores)}


def pairs_of(
    drawn: Sequence[world.Scene], seed: Sequence[int], detail: world.Detail = "full"
) -> list[tuple[Image.Image, str]]:
    """Images and captions of scenes, as `mir_task.measure` takes them."""
    pictures = [Image.fromarray(image) for image in images(drawn, seed)]
    texts = [world.caption(scene, detail) for scene in drawn]
    return list(zip(pictures, texts, strict=True))


def held_out_pairs() -> list[tuple[Image.Image, str]]:
    """Held-out images and their captions, those of `mir_scenes`."""
    return pairs_of(scenes(EVALUATION, EVALUATED, held_out=True), EVALUATION)


def measure(model: Any, pairs: Sequence[tuple[Image.Image, str]], **settings: Any) -> Any:
    """MIR as `mir_scenes` has it, with loss and perplexity of the captions."""
    return mir_task.measure(
        model, models.make_processor(), pairs, bars=False, **{"caption_ppl": True, **settings}
    )


def pretrain(model: Any, arm: Arm, at_step: Callable[[int, int], None] | None = None) -> list[float]:
    """Pre-train an arm's model; the losses of its steps."""
    unlock(model, arm.unlocked)
    if not arm.pairs:
        return []
    seed = (arm.seed, 1)
    examples = captioned(scenes(seed, arm.pairs), seed, arm.detail)
    model.train()
    losses = train(
        model,
        examples,
        seed=arm.seed,
        epochs=arm.epochs,
        learning_rate=arm.learning_rate,
        warmup=arm.warmup,
        at_step=at_step,
    )
    model.eval()
    return losses


def run(arm: Arm) -> tuple[dict[str, Any], Any]:
    """Run an arm.

    Returns:
        What goes into its JSON, and the pre-trained model.
    """
    started = time.perf_counter()
    model, pairs = arm.model(), held_out_pairs()
    curve = []

    def at_step(step: int, steps: int) -> None:
        if step in [int(share * steps) for share in CURVE]:
            curve.append({"pairs": step * BATCH, **figures(measure(model, pairs))})

    losses = pretrain(model, arm, at_step if arm == Arm(arm.seed, arm.pairs) else None)
    seconds = {"pretraining": time.perf_counter() - started}
    result = measure(model, pairs)
    seconds["mir"] = time.perf_counter() - started - sum(seconds.values())
    drawn = scenes(EVALUATION, EVALUATED, held_out=True)
    scores = {"0": accuracy(model, drawn, EVALUATION)}
    for budget in SFT_BUDGETS:
        tuned = copy.deepcopy(model)
        tuned.requires_grad_(True)
        tuned.model.vision_tower.requires_grad_(False)
        seed = (arm.seed, 2)
        sft = asked(scenes(seed, budget), seed)
        tuned.train()
        train(tuned, sft, seed=arm.seed, learning_rate=SFT_LEARNING_RATE, warmup=0.03)
        scores[str(budget)] = accuracy(tuned.eval(), drawn, EVALUATION)
    seconds["sft"] = time.perf_counter() - started - sum(seconds.values())
    tail = losses[-max(len(losses) // 10, 1) :]
    record = {
        "arm": dataclasses.asdict(arm),
        "training_loss": float(np.mean(tail)) if tail else None,
        "curve": curve,
        "mir": result.to_dict(),
        "accuracy": scores,
        "seconds": seconds,
    }
    return record, model


def figures(result: Any) -> dict[str, float]:
    """The values of a result, without its layers."""
    values = result.to_dict()
    return {key: values[key] for key in ("mir", "mir_published_fast", "mir_stderr", "caption_loss")}
