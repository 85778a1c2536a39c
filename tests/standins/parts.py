"""What the stand-ins share: small parts of models, and the truth of what each of them built."""

import functools
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image
from torch import Tensor, nn

from mir_task.demo.checkpoint import train_tokenizer
from tests.adapters.common import text_settings

PLACEHOLDER = "<img>"
SIZE = 64
"""Dimensions of the decoders; quantisers want no fewer."""


class Sequenced(NamedTuple):
    """A sequence as a stand-in built it."""

    embeds: Tensor
    """[L, d]."""
    vision: Tensor
    """bool [L]: rows of images, learned separators between them included."""


built: list[Sequenced] = []
"""Every sequence that a stand-in has built, in no particular order; threads may add to it."""


def join(pieces: Sequence[tuple[bool, Tensor]]) -> Tensor:
    """Embeddings [L, d] of a sequence from its pieces [l, d], each of vision or not; they are noted."""
    embeds = torch.cat([rows for _, rows in pieces])
    vision = torch.cat([torch.full((len(rows),), of_image) for of_image, rows in pieces])
    built.append(Sequenced(embeds.detach().clone(), vision))
    return embeds


@functools.cache
def tokenizer() -> Any:
    return train_tokenizer(extra=[PLACEHOLDER, "<slice>"])


def settings() -> dict[str, Any]:
    """Of a decoder's configuration."""
    return text_settings(tokenizer(), hidden_size=SIZE)


def ids(text: str) -> Tensor:
    """Token ids [l] of a text, without special tokens of a beginning."""
    return torch.tensor(tokenizer().encode(text, add_special_tokens=False))


def llama(model_class: Any = None) -> Any:
    """A causal language model of 3 layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**settings())
    return (model_class or LlamaForCausalLM)(config).eval()


class Tower(nn.Module):
    """An image to 16 rows."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, SIZE, 14, stride=14)

    def forward(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image.convert("RGB").resize((56, 56)))).permute(2, 0, 1)
        return self.patches(pixels[None].float() / 255).flatten(2)[0].T


class StandIn(lmms):
    """An adapter at its plainest: simple, one document at a time, nothing to load from disk."""

    is_simple = True
    stands_for: ClassVar[str]
    """Adapters of the harness that have this structure."""

    def __init__(self, batch_size: int = 1, **_: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.batch_size_per_gpu = int(batch_size)
        self.load()

    def load(self) -> None:
        raise NotImplementedError

    def answer(self, image: Image.Image, text: str) -> str:
        raise NotImplementedError

    @property
    def reference(self) -> Any:
        """What gives `hidden_states` of `inputs_embeds`, for an independent computation."""
        raise NotImplementedError

    def read(self, request: Instance) -> tuple[Image.Image, str]:
        """Image and text of a request."""
        context, _, doc_to_visual, doc_id, task, split = request.args
        (image,) = doc_to_visual(self.task_dict[task][split][doc_id])
        return image, context

    def generate_until(self, requests: list[Instance]) -> list[str]:
        return [self.answer(*self.read(request)) for request in requests]

    def loglikelihood(self, requests: list[Instance]) -> Any:
        raise NotImplementedError

    def generate_until_multi_round(self, requests: list[Instance]) -> Any:
        raise NotImplementedError


class ChatModel(nn.Module):
    """A model of the Hub that is asked through `chat`, as InternVL is."""

    def __init__(self, language_model: Any = None) -> None:
        from transformers import PretrainedConfig

        super().__init__()
        # The decoder's configuration goes by a name that nothing else knows.
        self.config = PretrainedConfig(llm_config=settings())
        self.vision_model = Tower()
        self.language_model = language_model or llama()

    def chat(self, tokenizer: Any, image: Image.Image, question: str, **generation: Any) -> str:
        query = f"<|user|><img_start>{PLACEHOLDER * 16}<img_end>\n{question}<|assistant|>"
        token_ids = ids(query)[None]
        embeds = self.language_model.get_input_embeddings()(token_ids)
        selected = token_ids[0] == tokenizer.convert_tokens_to_ids(PLACEHOLDER)
        embeds[0, selected] = self.vision_model(image).to(embeds)  # in place
        built.append(Sequenced(embeds[0].detach().clone(), selected))
        mask = torch.ones_like(token_ids)
        out = self.language_model.generate(inputs_embeds=embeds, attention_mask=mask, **generation)
        return str(tokenizer.decode(out[0]))


class Block(nn.Module):
    """A decoder layer that returns its output and its cache as a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(SIZE)
        self.qkv = nn.Linear(SIZE, 3 * SIZE)
        self.out = nn.Linear(SIZE, SIZE)
        self.mlp = nn.Sequential(nn.LayerNorm(SIZE), nn.Linear(SIZE, SIZE), nn.GELU())

    def forward(self, hidden: Tensor, past: Any = None) -> tuple[Tensor, Any]:
        q, k, v = (part[:, None] for part in self.qkv(self.norm(hidden)).chunk(3, dim=-1))
        if past is not None:
            k, v = (torch.cat(pair, dim=2) for pair in zip(past, (k, v), strict=True))
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        hidden = hidden + self.out(attended[:, 0])
        return hidden + self.mlp(hidden), (k, v)


class HubDecoder(nn.Module):
    """A decoder in the manner of older Hub code: names of its own, tuples for outputs and caches.

    Negative ids stand for rows of the image that it is given, as in Phi-3-Vision.
    """

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(settings()["vocab_size"], SIZE)
        self.h = nn.ModuleList(Block() for _ in range(settings()["num_hidden_layers"]))
        self.ln_f = nn.LayerNorm(SIZE)

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        image_rows: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> Any:
        hidden = inputs_embeds
        if hidden is None:
            hidden = self.wte(input_ids.clamp(min=0))
            if image_rows is not None:
                hidden[input_ids < 0] = image_rows
                built.append(Sequenced(hidden[0].detach().clone(), input_ids[0] < 0))
        caches, states = [], []
        for number, layer in enumerate(self.h):
            states.append(hidden)
            hidden, cache = layer(hidden, past_key_values[number] if past_key_values else None)
            caches.append(cache)
        hidden = self.ln_f(hidden)
        if output_hidden_states:
            return _HiddenStates((*states, hidden))
        return hidden, tuple(caches)


class _HiddenStates(NamedTuple):
    hidden_states: tuple[Tensor, ...]


class HubModel(nn.Module):
    """A causal language model around a `HubDecoder`, with its own `generate` and its tokenizer."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import PretrainedConfig

        counts = {name: settings()[name] for name in ("num_hidden_layers", "vocab_size")}
        self.config = PretrainedConfig(**counts)
        self.transformer = HubDecoder()
        self.visual = Tower()
        self.separator = nn.Parameter(torch.randn(1, SIZE))
        self.tokenizer = tokenizer()

    def forward(self, **inputs: Any) -> tuple[Tensor, Any]:
        hidden, caches = self.transformer(**inputs)
        return hidden[:, -1] @ self.transformer.wte.weight.T, caches

    def generate(self, max_new_tokens: int = 3, im_mask: Any = None, **inputs: Any) -> list[int]:
        logits, caches = self(**inputs)
        tokens = [int(logits.argmax())]
        while len(tokens) < max_new_tokens:
            logits, caches = self(input_ids=torch.tensor([tokens[-1:]]), past_key_values=caches)
            tokens.append(int(logits.argmax()))
        return tokens
