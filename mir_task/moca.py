"""MoCa: a learnable scale and shift of the vision tokens at the end of every decoder layer.

arXiv 2410.07167, section 3.4, equation 5: the vision tokens f_v that leave layer k become
u_k * f_v + v_k, elementwise, with u_k and v_k of the decoder's dimension d, ones and zeros at first.
Text tokens are left alone. No model's code is edited: one small module a layer holds the parameters
(`layers.3.moca.scale`, `layers.3.moca.shift`), and hooks apply it.
"""

import contextlib
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from loguru import logger
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils import cached_file

from mir_task.capture.decoder import Decoder, find_decoder, media_token_ids
from mir_task.capture.finder import Forward, PositionFinder
from mir_task.capture.streams import refuse_streams_of
from mir_task.errors import MIRError

FILE = "moca.safetensors"
"""What `save` writes to a folder."""

_INDEX = "model.safetensors.index.json"
# By its tail: transformers 5 saves a model under other prefixes than its modules have.
_KEY = re.compile(r"(?:^|\.)(\d+)\.moca\.(scale|shift)$")
_CHECKPOINTING = "_gradient_checkpointing_func"


class ScaleAndShift(nn.Module):
    """u * x + v, elementwise (equation 5); the identity at first.

    Args:
        size: d.
        device: of the layer.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        super().__init__()
        # float32 in a model of bfloat16 too, where 1 and the next number below are 2^-8 apart: the
        # small steps of a training would leave a scale of 1.0 where it is.
        self.scale = nn.Parameter(torch.ones(size, dtype=torch.float32, device=device))
        self.shift = nn.Parameter(torch.zeros(size, dtype=torch.float32, device=device))

    def forward(self, rows: Tensor) -> Tensor:
        """Of rows [n, d], in float32 at least, and back to their dtype."""
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        return (wide * self.scale + self.shift).to(rows.dtype)


class _Hooks:
    """What applies the parameters while the model runs; kept by the decoder.

    Hooks are methods and partials of methods, which `copy.deepcopy` binds to the copy.
    """

    def __init__(self, model: nn.Module, decoder: Decoder) -> None:
        self.decoder = decoder
        self.finder = PositionFinder(model, lasting=True)
        self.finder.attach(model, decoder)
        self.handles = [decoder.module.register_forward_pre_hook(self._wrap_checkpointing)]
        # Before the hooks that record hidden states for transformers.
        self.handles += [
            layer.register_forward_hook(self._scale_and_shift, prepend=True) for layer in decoder.layers
        ]

    def remove(self) -> None:
        self.finder.detach()
        for handle in self.handles:
            handle.remove()
        for module in (self.decoder.module, *self.decoder.layers):
            wrapped = vars(module).get(_CHECKPOINTING)
            if self._is_wrapped(wrapped):
                setattr(module, _CHECKPOINTING, wrapped.args[0])

    def _scale_and_shift(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        forward = self.finder.forward
        if forward is None or not (forward.step or forward.sequences is not None):
            raise MIRError(
                "a decoder layer with MoCa runs outside a forward of its decoder, and nothing tells "
                "where the vision tokens stand: checkpoint activations by the model's own "
                "gradient_checkpointing_enable(), and call layers through their decoder"
            )
        if forward.step:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        at = forward.vision(hidden.device)
        if not len(at[0]) and not torch.is_grad_enabled():
            return None
        assert forward.sequences is not None
        part = _part(layer)
        wanted = (len(forward.sequences), len(forward.sequences[0].real), len(part.scale))
        if tuple(hidden.shape) != wanted:
            raise MIRError(
                f"the output of a decoder layer has the shape {tuple(hidden.shape)}, not {wanted} of "
                "sequences, positions and dimensions: MoCa is not defined on it, so remove it"
            )
        # Without a vision token too, so that a text-only step of a training has gradients for all.
        changed = hidden.index_put(at, part(hidden[at]))
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    def _wrap_checkpointing(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Have recomputations in the backward pass find the positions of their own forward.

        Before each forward, because checkpointing may be enabled at any time. transformers 4 computes
        a layer once more with its hooks; when it does, another forward may have passed, and on an
        accelerator another thread does it.
        """
        for part in (module, *self.decoder.layers):
            run = vars(part).get(_CHECKPOINTING)
            if run is not None and not self._is_wrapped(run):
                setattr(part, _CHECKPOINTING, functools.partial(self._checkpoint, run))

    def _is_wrapped(self, run: Any) -> bool:
        return isinstance(run, functools.partial) and run.func == self._checkpoint

    def _checkpoint(self, run: Callable[..., Any], function: Any, *args: Any, **kwargs: Any) -> Any:
        return run(functools.partial(self._compute, self.finder.forward, function), *args, **kwargs)

    def _compute(self, forward: Forward | None, function: Any, *args: Any, **kwargs: Any) -> Any:
        with self.finder.again(forward):
            return function(*args, **kwargs)


def apply(model: nn.Module) -> None:
    """Give every decoder layer a scale of ones and a shift of zeros, which change nothing yet.

    From then on they are among `model.parameters()`, in its state dict and in what `save_pretrained`
    writes, whose configuration says `"moca": true`. Apply it before the optimizer is made and
    DistributedDataParallel wraps the model; after PEFT does, which freezes what it finds.

    Args:
        model: any Hugging Face model with a text decoder, on its devices.

    Raises:
        MIRError: MoCa is applied already, no text decoder or configuration is found, or the model has no
            vision tokens to scale: it hears or reads alone, attends to pictures by cross-attention, or
            carries several streams of states. Forwards raise it where nothing tells vision tokens from
            text.
    """
    decoder = find_decoder(model)
    if _hooks(decoder) is not None:
        raise MIRError(
            f"MoCa is applied to {type(model).__name__} already: train it on, set it with "
            "mir_task.moca.load, or take it away with mir_task.moca.remove first"
        )
    config = getattr(model, "config", None)
    if config is None:
        raise MIRError(
            f"{type(model).__name__} has no configuration: apply MoCa to the Hugging Face model itself, "
            "before it is wrapped"
        )
    _refuse(model, decoder)
    for layer in decoder.layers:
        layer.moca = ScaleAndShift(decoder.config.hidden_size, next(layer.parameters()).device)
    decoder.module._moca = _Hooks(model, decoder)  # type: ignore[assignment]
    config.moca = True


def _refuse(model: nn.Module, decoder: Decoder) -> None:
    """Raise where no vision token could ever be scaled, instead of changing nothing.

    Raises:
        MIRError: of the model, with the reason.
    """
    name = type(model).__name__
    # Only classes of transformers themselves say so: those of other packages inherit what they say.
    says = (
        getattr(model, "input_modalities", None)
        if type(model).__module__.startswith("transformers.")
        else None
    )
    if (says is not None and not {"image", "video"} & {says, *says}) or (
        media_token_ids(model, "audio") and not media_token_ids(model, "image")
    ):
        raise MIRError(f"{name} reads no images or videos, so it has no vision tokens for MoCa to scale")
    if decoder.cross_attends:
        raise MIRError(
            f"{name} attends to images by cross-attention, so no vision token stands in its text "
            "decoder's sequence for MoCa to scale"
        )
    refuse_streams_of(decoder)


def remove(model: nn.Module) -> None:
    """Take away parameters, hooks and the mark in the configuration.

    Raises:
        MIRError: MoCa is not applied.
    """
    decoder, hooks = _applied(model)
    hooks.remove()
    del decoder.module._moca
    for layer in decoder.layers:
        del layer.moca
    config: Any = model.config
    del config.moca


def save(model: nn.Module, path: str | Path) -> Path:
    """Write the parameters alone, 2 d numbers a layer.

    Args:
        model: with MoCa.
        path: a file that ends in `.safetensors`, or a folder, where the file is `moca.safetensors`.

    Returns:
        The file.

    Raises:
        MIRError: MoCa is not applied.
    """
    decoder, _ = _applied(model)
    file = Path(path)
    if file.suffix != ".safetensors":
        file = file / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"layers.{number}.moca.{name}": parameter.detach().cpu().contiguous()
        for number, layer in enumerate(decoder.layers)
        for name, parameter in _part(layer).named_parameters()
    }
    save_file(tensors, file)
    return file


def load(model: nn.Module, path: str | Path) -> None:
    """Read the parameters, applying MoCa first where it is not applied yet.

    Args:
        model: of the same decoder.
        path: what `save` wrote; a folder that `save_pretrained` wrote; or such a model's id on the Hub.
            In a folder that has both, the file of `save` is read.

    Raises:
        MIRError: there are none at that path, or those of another decoder; the model stays as it was.
    """
    decoder = find_decoder(model)
    tensors = _read(str(path))
    wanted = {(n, name) for n in range(len(decoder.layers)) for name in ("scale", "shift")}
    size = decoder.config.hidden_size
    shapes = {tuple(tensor.shape) for tensor in tensors.values()}
    if set(tensors) != wanted or shapes != {(size,)}:
        layers = len({number for number, _ in tensors})
        raise MIRError(
            f"{path} holds {len(tensors)} tensors of MoCa, of {layers} layers and the shapes "
            f"{sorted(shapes)}; {type(model).__name__} has {len(decoder.layers)} layers, each with a "
            f"scale and a shift of the shape {(size,)}: load what a model of the same decoder saved"
        )
    if _hooks(decoder) is None:
        apply(model)
    with torch.no_grad():
        for (number, name), tensor in tensors.items():
            _part(decoder.layers[number]).get_parameter(name).copy_(tensor)


def restore(model: nn.Module) -> None:
    """Give a model that was loaded from a checkpoint with MoCa the parameters that loading left behind.

    `from_pretrained` knows nothing of MoCa and ignores its tensors, though the configuration says
    `"moca": true`. Nothing happens to a model without that mark, or with MoCa applied.

    Raises:
        MIRError: the parameters are not where the model came from.
    """
    if not getattr(getattr(model, "config", None), "moca", False):
        return
    if _hooks(find_decoder(model)) is not None:
        return
    origin = getattr(model, "name_or_path", "") or getattr(model.config, "_name_or_path", "")
    try:
        load(model, origin)
    except MIRError as error:
        raise MIRError(
            f"by its configuration {type(model).__name__} was trained with MoCa, but {error}; or call "
            "mir_task.moca.load(model, path) before"
        ) from error
    logger.info(f"MoCa's scales and shifts of {origin} restored, which from_pretrained leaves behind")


def _part(layer: nn.Module) -> ScaleAndShift:
    return cast(ScaleAndShift, layer.moca)


def _hooks(decoder: Decoder) -> _Hooks | None:
    return vars(decoder.module).get("_moca")


def _applied(model: nn.Module) -> tuple[Decoder, _Hooks]:
    decoder = find_decoder(model)
    hooks = _hooks(decoder)
    if hooks is None:
        raise MIRError(f"{type(model).__name__} has no MoCa: call mir_task.moca.apply or .load first")
    return decoder, hooks


def _read(source: str) -> dict[tuple[int, str], Tensor]:
    """Layer number (from 0) and name of each parameter in what `load` takes.

    Raises:
        MIRError: there is none.
    """
    tensors = {}
    for file in _files(source):
        with contextlib.suppress(SafetensorError), safe_open(file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - it has no iterator
                if match := _KEY.search(key):
                    tensors[int(match[1]), match[2]] = opened.get_tensor(key)
    if not tensors:
        raise MIRError(
            f"{source or 'no path'} holds no parameters of MoCa: give the path of what "
            "mir_task.moca.save wrote, or a folder or Hub id whose model.safetensors has them"
        )
    return tensors


def _files(source: str) -> list[str]:
    """The safetensors files of a file's path, a folder or a repository of the Hub that may hold them."""
    if Path(source).is_file():
        return [source]
    for name in (FILE, _INDEX, "model.safetensors"):
        # ValueError: a text that cannot name a repository.
        with contextlib.suppress(OSError, ValueError):
            found = cached_file(source, name)
            if name != _INDEX:
                return [found]
            shards = json.loads(Path(found).read_text("utf-8"))["weight_map"].items()
            names = {shard for key, shard in shards if _KEY.search(key)}
            return [cached_file(source, shard) for shard in sorted(names)]
    return []
