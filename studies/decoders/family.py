"""What an arm needs of a decoder, and the two small decoders as that."""

import functools
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionModel, LlavaConfig, LlavaForConditionalGeneration

from mir_task.demo.models import scenes_processor
from studies.alignment import connectors, gate, language, models, train, world
from studies.decoders import small
from studies.decoders.recipes import Decoder, Recipe

Pair = tuple[Image.Image, str]


class Examples(NamedTuple):
    """Features of images by the frozen encoder [n, tokens, features], and conversations about them."""

    features: Tensor
    conversations: Sequence[tuple[list[int], list[int]]]
    """Ids and labels each, with as many placeholders as an image has tokens, or none.

    The end of a turn is labelled where it is trained on, not where it is measured.
    """

    def __len__(self) -> int:
        return len(self.conversations)

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Arguments of `Reader`'s forward."""
        ids, labels = language.batch([self.conversations[row] for row in rows])
        return {"features": self.features[list(rows)], "input_ids": ids, "labels": labels}


class Family(Protocol):
    """A decoder with its images, captions, questions and outcome."""

    name: Decoder
    image: int
    """Id of the placeholders."""
    tokens: int
    """Vision tokens of an image."""
    styles: tuple[str, ...]
    budget: int
    """Questions of the fine-tuning."""
    at_once: int
    """Conversations that are measured at a time, at most."""
    sft_learning_rate: float

    def model(self, recipe: Recipe) -> LlavaForConditionalGeneration:
        """With an untrained connector."""

    def processor(self) -> Any:
        """Of the model."""

    def pairs(self, seed: Sequence[int], number: int, style: str, shuffled: float) -> Examples:
        """Training images and captions, of which that share is exchanged among the images."""

    def held_out(self, style: str) -> tuple[list[Pair], Examples]:
        """The 200 documents on which all is measured."""

    def questions(self, seed: Sequence[int]) -> Examples:
        """Of the fine-tuning."""

    def score(self, reader: "Reader") -> dict[str, Any]:
        """`accuracy`, `answer_loss` and `bits`, one a held-out question."""


class Reader(nn.Module):
    """A LLaVA that is given the encoder's features in place of pixels.

    Args:
        model: whose connector and decoder read them.
        image: id of the placeholders.
        at_once: conversations that are measured at a time, at most.
    """

    def __init__(self, model: Any, image: int, at_once: int = 100) -> None:
        super().__init__()
        self.llava, self.image, self.at_once = model, image, at_once

    def batches(self, number: int, batch: int) -> Iterator[range]:
        """Numbers of conversations that are measured at a time, `batch` if that many may be."""
        step = min(batch, self.at_once)
        for start in range(0, number, step):
            yield range(start, min(start + step, number))

    def states(
        self, features: Tensor, input_ids: Tensor, use_cache: bool = False, **options: Any
    ) -> Any:
        """The decoder's output for ids [batch, n], whose placeholders the features replace."""
        device = self.llava.device
        ids = input_ids.to(device)
        embedded = self.llava.get_input_embeddings()(ids)
        places = ids == self.image
        if places.any():
            connector = self.llava.model.multi_modal_projector
            rows = connector(features.to(device, embedded.dtype))
            embedded = embedded.masked_scatter(places[..., None], rows.to(embedded.dtype))
        # Padding stands on the right, where causal attention does not see it.
        return self.llava.model.language_model(inputs_embeds=embedded, use_cache=use_cache, **options)

    def losses(
        self, features: Tensor, input_ids: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of every labelled token: loss, whether it is the most likely, and its row of the batch."""
        states = self.states(features, input_ids).last_hidden_state
        return self.losses_after(states[:, :-1], labels[:, 1:])

    def losses_after(self, states: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same from the decoder's output [batch, n, d] and the tokens that follow [batch, n]."""
        wanted = wanted.to(states.device)
        rows, places = (wanted != language.IGNORED).nonzero(as_tuple=True)
        logits = self.llava.lm_head(states[rows, places]).float()
        answers = wanted[rows, places]
        losses = nn.functional.cross_entropy(logits, answers, reduction="none")
        return losses, logits.argmax(-1) == answers, rows

    def forward(
        self, features: Tensor, input_ids: Tensor, labels: Tensor, use_cache: bool = False
    ) -> Any:
        """The mean loss, as `studies.alignment.train.train` reads it."""
        return SimpleNamespace(loss=self.losses(features, input_ids, labels)[0].mean())


def shuffle(texts: list[str], share: float, random: np.random.Generator) -> list[str]:
    """Texts of which a share went round among their places, none staying where it was."""
    moved = random.permutation(len(texts))[: round(share * len(texts))]
    mixed = list(texts)
    for source, place in zip(moved, np.roll(moved, 1), strict=True):
        mixed[place] = texts[source]
    return mixed


class Scenes:
    """A small decoder on the first study's scenes, with its encoder."""

    styles = ("full", "colours", "shapes")
    tokens = models.TOKENS
    budget = 1000
    at_once = 100
    sft_learning_rate = train.SFT_LEARNING_RATE
    image = language.IMAGE

    def __init__(self, name: Decoder) -> None:
        self.name = name
        self.encode = small.Encode(name)  # type: ignore[arg-type]
        self._placeholders = [language.IMAGE] * self.tokens

    def model(self, recipe: Recipe) -> LlavaForConditionalGeneration:
        """With an untrained connector."""
        decoder = small.load(self.name)  # type: ignore[arg-type]
        torch.manual_seed(recipe.seed)
        config = LlavaConfig(
            vision_config=models.ENCODER,
            text_config=decoder.config,
            image_token_index=language.IMAGE,
            image_seq_length=self.tokens,
            pad_token_id=language.PAD,
        )
        model = LlavaForConditionalGeneration(config)
        model.model.language_model, model.lm_head = decoder.model, decoder.lm_head
        model.model.vision_tower.load_state_dict(gate.load()[1])
        words = decoder.model.embed_tokens.weight[len(language.SPECIAL_TOKENS) :].detach()
        model.model.multi_modal_projector = connectors.make(
            recipe.connector,
            models.ENCODER.hidden_size,
            decoder.config.hidden_size,
            self.tokens,
            std=decoder.config.initializer_range,
            scale=recipe.scale,
            norm=float(words.norm(dim=1).mean()) if recipe.matched_norm else None,
        )
        return model.eval()

    def processor(self) -> Any:
        """Of the model."""
        return scenes_processor(small.tokenizer(self.name))  # type: ignore[arg-type]

    def conversation(self, said: str, answer: str, *, end: bool = True) -> tuple[list[int], list[int]]:
        """Ids and labels of one turn about an image.

        Args:
            said: after the image.
            answer: to it.
            end: whether the end of the turn is labelled too, as in training.
        """
        ids, labels = language.conversation([(f"<image> {said}".strip(), answer)], self.encode)
        place = ids.index(language.IMAGE)
        ignored = [language.IGNORED] * self.tokens
        ids[place : place + 1] = self._placeholders
        labels[place : place + 1] = ignored
        return ids, labels if end else [*labels[:-1], language.IGNORED]

    def pairs(self, seed: Sequence[int], number: int, style: str, shuffled: float) -> Examples:
        """Training images and captions, of which that share is exchanged among the images."""
        scenes = train.scenes(seed, number)
        texts = [world.caption(scene, style) for scene in scenes]  # type: ignore[arg-type]
        texts = shuffle(texts, shuffled, np.random.default_rng([*seed, 7]))
        return Examples(features(scenes, seed), [self.conversation("", text) for text in texts])

    def held_out(self, style: str) -> tuple[list[Pair], Examples]:
        """The 200 documents on which all is measured."""
        scenes = train.scenes(train.EVALUATION, train.EVALUATED, held_out=True)
        pairs = train.pairs_of(scenes, train.EVALUATION, style)  # type: ignore[arg-type]
        conversations = [self.conversation("", text, end=False) for _, text in pairs]
        return pairs, Examples(features(scenes, train.EVALUATION), conversations)

    def questions(self, seed: Sequence[int]) -> Examples:
        """Of the fine-tuning."""
        scenes = train.scenes(seed, self.budget)
        random = np.random.default_rng([*seed, 1])
        asked = [world.question(scene, random.choice(world.KINDS), random) for scene in scenes]
        conversations = [self.conversation(question.text, question.answer) for question in asked]
        return Examples(features(scenes, seed), conversations)

    def score(self, reader: Reader) -> dict[str, Any]:
        """Accuracy and answer loss on seven questions about each held-out scene."""
        scenes = train.scenes(train.EVALUATION, train.EVALUATED, held_out=True)
        random = np.random.default_rng([*train.EVALUATION, 1])
        asked = [question for scene in scenes for question in world.questions(scene, random)]
        rows = features(scenes, train.EVALUATION).repeat_interleave(len(world.KINDS), 0)
        conversations = [self.conversation(each.text, each.answer, end=False) for each in asked]
        losses, right = per_document(reader, Examples(rows, conversations))
        bits = [int(all(each)) for each in right]
        kinds = {
            kind: float(np.mean(bits[number :: len(world.KINDS)]))
            for number, kind in enumerate(world.KINDS)
        }
        return {
            "accuracy": float(np.mean(bits)),
            "answer_loss": float(np.mean([sum(each) for each in losses])),
            "by_kind": kinds,
            "bits": bits,
        }


@torch.no_grad()
def per_document(
    reader: Reader, examples: Examples, batch: int = 100
) -> tuple[list[list[float]], list[list[bool]]]:
    """Losses of each document's labelled tokens, and whether each was the most likely."""
    losses: list[list[float]] = [[] for _ in range(len(examples))]
    right: list[list[bool]] = [[] for _ in range(len(examples))]
    for rows in reader.batches(len(examples), batch):
        for loss, hit, row in zip(
            *(part.tolist() for part in reader.losses(**examples.batch(rows))), strict=True
        ):
            losses[rows[row]].append(loss)
            right[rows[row]].append(hit)
    return losses, right


@functools.lru_cache(maxsize=1)
def _encoder() -> CLIPVisionModel:
    encoder = CLIPVisionModel(models.ENCODER).eval()
    encoder.load_state_dict(gate.load()[1])
    return encoder


@torch.no_grad()
def features(scenes: Sequence[world.Scene], seed: Sequence[int], batch: int = 500) -> Tensor:
    """The encoder's features of scenes [n, tokens, features], as LLaVA takes them."""
    images = torch.from_numpy(train.images(scenes, seed))
    parts = [torch.empty(0, models.TOKENS, models.ENCODER.hidden_size)]
    for start in range(0, len(images), batch):
        pixels = models.pixels(images[start : start + batch])
        states = _encoder()(pixels, output_hidden_states=True).hidden_states
        parts.append(states[gate.FEATURES][:, 1:])
    return torch.cat(parts)
