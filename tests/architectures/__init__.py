"""Small random models of the architectures of transformers, measured and measured independently.

Each is built from its default configuration (`small`), gets its inputs directly (no processor), and is
one `Small` in a module of its kind.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor, nn

from tests.architectures import small
from tests.architectures.small import AUDIO, END, IMAGE, START, VIDEO

Call = dict[str, Tensor]
"""Arguments of a model's forward, batch of one."""
Media = Callable[[Any, torch.Generator], Call]
"""What the encoder of a medium receives, of a model's configuration and random numbers."""

PLACEHOLDERS = {"image": IMAGE, "video": VIDEO, "audio": AUDIO}


def no_more(model: Any, call: Call) -> Call:
    return {}


@dataclass(frozen=True)
class Small:
    """One architecture."""

    name: str
    """By which the mappings of transformers know it."""
    media: Media
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Of the shrunk default configuration."""
    tokens: int | None = None
    """Placeholders of a medium; as many as the model makes features of it where None."""
    layers: str = "model.language_model.layers"
    """Path of the decoder's layers; their owner is the decoder."""
    decoder: str = ""
    """Path of the decoder where it is not the owner of the layers."""
    modality: str = "image"
    more: Callable[[Any, Call], Call] = no_more
    """Further arguments, by those that there are."""
    vision: Callable[[Any, Call], Tensor] | None = None
    """Positions [L] of vision tokens; those of the placeholder where None."""
    refused: str = ""
    """Regular expression of the message where MIR is not defined on it."""
    remark: str = ""
    """What is special about it, or about this row of several of one name."""
    not_on_4: str = ""
    """Why it is not tried on transformers 4."""

    @property
    def key(self) -> str:
        """Name, and the modality where it is not images."""
        return self.name if self.modality == "image" else f"{self.name}, {self.modality}"

    @cached_property
    def model_class(self) -> Any:
        """None where this release of transformers has none."""
        import transformers

        return getattr(transformers, names()[self.name], None) if self.name in names() else None

    @property
    def hindrance(self) -> str:
        """Why it cannot be tried in this environment; empty where it can."""
        import transformers

        if self.model_class is None:
            return f"transformers has no {self.name} here"
        old = Version(transformers.__version__).major < 5
        return f"on transformers 4: {self.not_on_4}" if self.not_on_4 and old else ""

    def build(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """With random weights."""
        config_class = self.model_class.config_class
        return small.build(
            self.model_class, config_class(**small.settings(config_class, self.changes)), dtype
        )

    def encode(self, model: nn.Module, number: int, text: str) -> Call:
        """Arguments of the forward for a medium by its number and a text that follows it."""
        model = getattr(model, "thinker", model)
        media = self.media(model.config, torch.Generator().manual_seed(number))
        count = features(model, self.modality, media) if self.tokens is None else self.tokens
        words = small.tokenizer().encode(text, add_special_tokens=False)
        before = [1, *range(300, 300 + number)]
        ids = [*before, START, *[PLACEHOLDERS[self.modality]] * count, END, *words, 2]
        call = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long()}
        call |= media
        if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
            kind = 1 + list(PLACEHOLDERS).index(self.modality)
            call["mm_token_type_ids"] = (call["input_ids"] == PLACEHOLDERS[self.modality]).long() * kind
        return call | self.more(model, call)

    def vision_of(self, model: nn.Module, call: Call) -> Tensor:
        """Independent positions [L] of vision tokens."""
        if self.vision is not None:
            return self.vision(model, call)
        return call["input_ids"][0] == PLACEHOLDERS[self.modality]


def features(model: Any, modality: str, media: Call) -> int:
    """Rows that a model makes of a medium."""
    get = getattr(model, f"get_{modality}_features", None) or getattr(
        model.model, f"get_{modality}_features"
    )
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        found = get(**{key: t.to(dtype) if t.is_floating_point() else t for key, t in media.items()})
    found = getattr(found, "pooler_output", found)
    parts = found if isinstance(found, list | tuple) else [found]
    if isinstance(parts[0], list | tuple):  # of transformers 4, before features of DeepStack
        parts = parts[0]
    return sum(part.shape[:-1].numel() for part in parts)


def names() -> dict[str, str]:
    """From the names of architectures to the names of their classes, of both mappings."""
    from transformers.models.auto import modeling_auto

    multimodal = getattr(modeling_auto, "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES", {})
    return {**modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, **multimodal}


def architectures() -> list[Small]:
    """All, in the order of their names."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [name for name in modules if not name.startswith(("_", "test_"))]
    found = [importlib.import_module(f"{__name__}.{name}") for name in modules]
    return sorted((row for module in found for row in getattr(module, "SMALL", [])), key=lambda r: r.key)
