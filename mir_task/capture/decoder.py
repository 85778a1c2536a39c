"""The text decoder of any model, and the token ids that stand for its media."""

import contextlib
from dataclasses import dataclass
from typing import Any

from torch import nn

from mir_task.errors import MIRError

# Adapters may show an image as a video, or a video as images, so these two are one kind.
MEDIA = {"image": ("image", "video"), "video": ("image", "video"), "audio": ("audio",)}
"""Kinds of media, and which kinds count as one."""


@dataclass(frozen=True)
class Decoder:
    """The text decoder of a model."""

    name: str
    """Path of the module in the model."""
    module: nn.Module
    layers: nn.ModuleList
    embedding: nn.Module
    """The input-embedding module."""
    config: Any
    """Of the decoder, with its `num_hidden_layers`."""

    def around(self, model: nn.Module) -> list[nn.Module]:
        """The modules of `model` in which the decoder lies, the outermost first; or the model itself."""
        parts = self.name.split(".")
        return [model.get_submodule(".".join(parts[:n])) for n in range(len(parts))]


def _reader(model: nn.Module) -> tuple[str, nn.Module]:
    """The part of a model that reads images and text, and its path.

    An omni model has a second decoder that speaks, which structure alone cannot tell from the first.
    """
    thinker = getattr(model, "thinker", None)
    return ("thinker", thinker) if isinstance(thinker, nn.Module) else ("", model)


def find_decoder(model: nn.Module) -> Decoder:
    """The module that owns the text decoder's layers and an input embedding.

    Found by structure: `get_decoder()` returns the whole model in several releases of transformers, and
    models of other packages name their parts and configurations as they like.

    Raises:
        MIRError: no module, or more than one, fits.
    """
    prefix, reader = _reader(model)
    around = _text_config(getattr(reader, "config", None))
    found = []
    for name, module in reader.named_modules(prefix=prefix):
        embedding = _input_embedding(module)
        for config in (around, _text_config(getattr(module, "config", None))):
            count = getattr(config, "num_hidden_layers", None)
            layers = [c for c in module.children() if isinstance(c, nn.ModuleList) and len(c) == count]
            if embedding is not None and len(layers) == 1:
                found.append(Decoder(name, module, layers[0], embedding, config))
                break
    # Towers of other modalities embed their positions, and may have as many layers.
    tokens = _token_embedding(reader)
    for is_texts in (lambda d: d.embedding is tokens, _embeds_a_vocabulary):
        if len(found) > 1:
            found = [decoder for decoder in found if is_texts(decoder)] or found
    if len(found) != 1:
        names = ", ".join(decoder.name for decoder in found) or "none"
        raise MIRError(
            f"{type(model).__name__}: looked for one module with an input embedding and as many decoder "
            f"layers as its configuration says, found {names}; MIR is defined on the layers of a single "
            "text decoder"
        )
    return found[0]


def _text_config(config: Any) -> Any:
    """The part of a Hugging Face configuration that speaks of the text decoder."""
    if hasattr(config, "get_text_config"):
        return config.get_text_config(decoder=True)
    return getattr(config, "text_config", config)


def _embeds_a_vocabulary(decoder: Decoder) -> bool:
    rows = getattr(decoder.embedding, "num_embeddings", 0)
    return bool(rows >= getattr(decoder.config, "vocab_size", 1))


def _input_embedding(module: nn.Module) -> nn.Module | None:
    """The input embedding that a module owns, wrapped by an adapter of PEFT or not."""
    named = getattr(module, "embed_tokens", None)
    if isinstance(named, nn.Module):
        return named
    own = [child for child in module.children() if isinstance(child, nn.Embedding)]
    return max(own, key=lambda embedding: embedding.num_embeddings, default=None)


def _token_embedding(model: Any) -> Any:
    """The input embedding that a model names as its own, if it does."""
    with contextlib.suppress(AttributeError, NotImplementedError):
        return model.get_input_embeddings()
    return None


def media_token_ids(model: nn.Module, modality: str) -> set[int]:
    """Ids that stand for a modality's tokens in expanded `input_ids`, as the configuration names them.

    Args:
        model: with a Hugging Face configuration; without one there are no ids.
        modality: "image", "video" (both mean images and videos) or "audio".
    """
    config = getattr(_reader(model)[1], "config", None)
    tower = getattr(config, "audio_config" if modality == "audio" else "vision_config", None)
    for part in (config, tower):  # Phi-4 names them in the configurations of its towers
        ids = {
            getattr(part, f"{name}_token_{suffix}", None)
            for name in MEDIA[modality]
            for suffix in ("id", "index")
        }
        if known := {token_id for token_id in ids if isinstance(token_id, int) and token_id >= 0}:
            return known
    return set()
