"""The text decoder of any model, and the token ids that stand for its media."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from mir_task.errors import MIRError

# Adapters may show an image as a video, or a video as images, so these two are one kind.
MEDIA = {"image": ("image", "video"), "video": ("image", "video"), "audio": ("audio",)}
"""Kinds of media, and which kinds count as one."""


_CROSS_ATTENTION = re.compile(r"cross_?att(n|ention)", re.IGNORECASE)


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
    before: tuple[nn.Module, ...] = ()
    """What may receive the sequence before the first layer, such as blocks of cross-attention."""
    block: nn.Module | None = None
    """The part of the decoder that makes rows of token ids, where that is more than the embedding."""

    @property
    def cross_attends(self) -> bool:
        """Whether layers attend to something outside of its sequence, by the names of their parts."""
        inside = (part for whole in (self.layers, *self.before) for part in whole.named_modules())
        return any(_CROSS_ATTENTION.search(f"{name} {type(part).__name__}") for name, part in inside)

    def around(self, model: nn.Module) -> list[nn.Module]:
        """The modules of `model` in which the decoder lies, the outermost first; or the model itself."""
        parts = self.name.split(".")
        return [model.get_submodule(".".join(parts[:n])) for n in range(len(parts))]


def reading_part(model: nn.Module) -> nn.Module:
    """The part of a model that reads media and text: an omni model's thinker, else the model itself.

    An omni model has a second decoder that speaks, which structure alone cannot tell from the first, and
    no forward of its own.
    """
    return _reader(model)[1]


def _reader(model: nn.Module) -> tuple[str, nn.Module]:
    """The reading part and its path."""
    thinker = getattr(model, "thinker", None)
    return ("thinker", thinker) if isinstance(thinker, nn.Module) else ("", model)


def find_decoder(model: nn.Module) -> Decoder:
    """The module that owns the text decoder's layers and an input embedding.

    Found by structure: `get_decoder()` returns the whole model in several releases of transformers, and
    models of other packages name their parts and configurations as they like.

    Raises:
        MIRError: no module, or more than one, fits; or the model is an encoder-decoder.
    """
    prefix, reader = _reader(model)
    config = getattr(reader, "config", None)
    around = _text_config(config)
    if getattr(config, "is_encoder_decoder", False) or getattr(around, "is_encoder_decoder", False):
        raise MIRError(
            f"{type(model).__name__} is an encoder-decoder: its text decoder attends by cross-attention "
            "to what the encoder makes of its input, so no vision or audio token stands in the "
            "decoder's own sequence, and MIR is not defined on it"
        )
    found = _owners(reader, prefix, around) or _in_parts(reader, prefix, around)
    # Towers of other modalities embed their positions, and may have as many layers.
    tokens = _token_embedding(reader)
    for is_texts in (lambda d: d.embedding is tokens, _embeds_a_vocabulary):
        if len(found) > 1:
            found = [decoder for decoder in found if is_texts(decoder)] or found
    if len(found) != 1:
        names = ", ".join(decoder.name for decoder in found) or "none"
        lists = [name for name, part in reader.named_modules(prefix=prefix) if _is_layers(part, around)]
        if not found and lists:
            names += f" (nothing tells which of the lists {', '.join(lists)} are its layers)"
        raise MIRError(
            f"{type(model).__name__}: looked for one module with an input embedding and as many decoder "
            f"layers as its configuration says, found {names}; MIR is defined on the layers of a single "
            "text decoder"
        )
    return found[0]


def _owners(reader: nn.Module, prefix: str, around: Any) -> list[Decoder]:
    """Modules whose own children are an input embedding and a list of layers."""
    found = []
    for name, module in reader.named_modules(prefix=prefix):
        embedding = _input_embedding(module)
        for config in (around, _text_config(getattr(module, "config", None))):
            lists = [child for child in module.named_children() if _is_layers(child[1], config)]
            if embedding is not None and (told := _layers(lists)):
                layers, before = told
                found.append(Decoder(name, module, layers, embedding, config, before))
                break
    return found


def _in_parts(reader: nn.Module, prefix: str, around: Any) -> list[Decoder]:
    """Modules in whose parts an input embedding and a list of layers lie, as in BERT; the innermost."""
    tokens = _token_embedding(reader)
    found: list[Decoder] = []
    for name, module in reader.named_modules(prefix=prefix):
        own = getattr(module, "config", None)
        for config in (around, _text_config(own)) if own is not None else ():
            parts = dict(_own_parts(module, own))
            lists = [part for part in parts.items() if _is_layers(part[1], config)]
            path = next((p for p, part in parts.items() if _is_input(part, tokens, config)), None)
            if path is not None and (told := _layers(lists)):
                found = [decoder for decoder in found if not _lies_in(name, decoder.name)]
                block = module.get_submodule(path.partition(".")[0])
                layers, before = told
                found.append(Decoder(name, module, layers, parts[path], config, before, block))
                break
    return found


def _text_config(config: Any) -> Any:
    """The part of a Hugging Face configuration that speaks of the text decoder."""
    if hasattr(config, "get_text_config"):
        return config.get_text_config(decoder=True)
    return getattr(config, "text_config", config)


def _lies_in(path: str, outer: str) -> bool:
    return not outer or path.startswith(f"{outer}.")


def _is_input(module: nn.Module, tokens: Any, config: Any) -> bool:
    """Whether a module is the input embedding that its model names; if none, embeds a vocabulary."""
    if tokens is not None:
        return module is tokens
    return isinstance(module, nn.Embedding) and module.num_embeddings >= config.vocab_size


def _is_layers(module: nn.Module, config: Any) -> bool:
    count = getattr(config, "num_hidden_layers", None)
    return isinstance(module, nn.ModuleList) and len(module) == count


def _layers(lists: list[tuple[str, nn.Module]]) -> tuple[nn.ModuleList, tuple[nn.Module, ...]] | None:
    """The decoder's layers of one or more lists of as many, and what may run before.

    Where blocks of cross-attention stand in a list of their own, the layers are called so. None where
    nothing tells.
    """
    named = [part for part in lists if part[0].rpartition(".")[2] in ("layers", "layer")]
    candidates = named if len(lists) > 1 else lists
    if len(candidates) != 1:
        return None
    ((_, layers),) = candidates
    before = [cast(nn.ModuleList, part)[0] for _, part in lists if part is not layers]
    return cast(nn.ModuleList, layers), tuple(before)


def _own_parts(module: nn.Module, config: Any, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules in a module with their paths, without those that have a configuration of their own."""
    for name, child in module.named_children():
        if getattr(child, "config", config) is config:
            yield f"{path}{name}", child
            yield from _own_parts(child, config, f"{path}{name}.")


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
    for part in _parts(getattr(reading_part(model), "config", None)):
        ids = {
            getattr(part, f"{name}_token_{suffix}", None)
            for name in MEDIA[modality]
            for suffix in ("id", "index")
        }
        if known := {token_id for token_id in ids if isinstance(token_id, int) and token_id >= 0}:
            return known
    return set()


def _parts(config: Any) -> Iterator[Any]:
    """A configuration and those in it, the outer ones first; some name their ids in those of a tower."""
    level = [config]
    while level:
        yield from level
        inner = [value for part in level for value in getattr(part, "__dict__", {}).values()]
        level = [value for value in inner if hasattr(value, "to_dict")]
