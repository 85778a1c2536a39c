"""Hidden states that vLLM's ExampleHiddenStatesConnector wrote, and what the checkpoint says of them.

The connector writes one file a request, with `hidden_states` [L, layers, d] and `token_ids` [L], into
one folder, and nothing of the model. By vLLM's documentation, layer k is what k layers give, and that of
`num_hidden_layers` comes before the final norm, which is therefore applied here: the norm of the class
in transformers, with the weights of the checkpoint. Read from vLLM's documentation and source; not run
against a live server.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from mir_task.capture.decoder import Decoder, find_decoder, media_token_ids
from mir_task.errors import MIRError
from mir_task.states.layout import (
    DTYPES,
    HEADER_DTYPES,
    SUFFIX,
    Manifest,
    Stored,
    add_documents,
    document_files,
    opened,
)

_ELSEWHERE = re.compile(r"(^|\.)(layers?|blocks?|visual|vision\w*|vit|encoder|audio\w*|mlp1?|mtp)\.")
"""Parts of a checkpoint that are not the text decoder's own."""


def find(folders: Sequence[Path], checkpoint: Path, vision_token_ids: Sequence[int] | None) -> Stored:
    """What some of the connector's folders hold.

    Args:
        folders: of its files.
        checkpoint: folder of the model, with config.json and safetensors.
        vision_token_ids: of the placeholders; those that the configuration names where not given.

    Raises:
        MIRError: no files, or a checkpoint that does not say what is needed, by name.
    """
    files: dict[str, Path] = {}
    for folder in folders:
        own = document_files(folder)
        if not own:
            raise MIRError(f"{folder} holds no *{SUFFIX} of vLLM's ExampleHiddenStatesConnector")
        add_documents(files, own)
    if not files:
        raise MIRError("no folder of hidden states was given")
    model = _empty_model(checkpoint)
    decoder = find_decoder(model)
    layers, first = len(decoder.layers), next(iter(files.values()))
    count, dtype = _first(first)
    if count not in (layers, layers + 1):
        raise MIRError(
            f"{first.name} has states of {count} layers, and {checkpoint} has {layers} decoder layers: "
            f"ask vLLM for eagle_aux_hidden_state_layer_ids 1 to {layers} in order, or 0 to {layers}"
        )
    ids = sorted(media_token_ids(model, "image")) if vision_token_ids is None else vision_token_ids
    if not ids:
        raise MIRError(
            f"the configuration of {checkpoint} names no image token: give vision_token_ids, the ids of "
            "its placeholders in the prompt's tokens"
        )
    manifest = Manifest(
        model=str(checkpoint),
        model_class=type(model).__name__,
        engine="vllm",
        layers=layers,
        input_layer=count > layers,
        hidden_size=next(decoder.embedding.parameters()).shape[-1],
        dtype=dtype,
        last_layer="after_norm",  # once `norm` is applied
        vision_token_ids=tuple(ids),
        media_token_ids=tuple(sorted(media_token_ids(model, "audio"))),
    )
    norm = _final_norm(decoder, manifest.hidden_size, checkpoint).to(DTYPES[dtype])
    return Stored(manifest, norm, dict(sorted(files.items())), "vllm")


def _first(path: Path) -> tuple[int, Any]:
    """Number of layers and dtype in a file, which the others have to have too."""
    with opened(path, "a document's hidden states") as file:
        keys = list(file.keys())
        if "hidden_states" not in keys:
            raise MIRError(f"{path} has no tensor 'hidden_states'; it has {', '.join(keys)}")
        part = file.get_slice("hidden_states")
        shape, dtype = part.get_shape(), part.get_dtype()
    if len(shape) != 3:
        raise MIRError(f"{path}: hidden_states has shape {shape}, not [L, layers, d]")
    if dtype not in HEADER_DTYPES:
        can_be = ", ".join(HEADER_DTYPES.values())
        raise MIRError(f"{path}: hidden_states is of dtype {dtype}; {can_be} can be measured")
    return shape[1], HEADER_DTYPES[dtype]


def _empty_model(checkpoint: Path) -> nn.Module:
    """The model of a checkpoint without its weights."""
    otherwise = "write the states with write_states, which takes their norm"
    if not (checkpoint / "config.json").is_file():
        raise MIRError(f"{checkpoint} is no folder of a checkpoint: it has no config.json")
    try:
        config = transformers.AutoConfig.from_pretrained(checkpoint)
    except Exception as error:
        raise MIRError(
            f"the configuration of {checkpoint} cannot be read ({type(error).__name__}: {error}); "
            f"{otherwise}"
        ) from error
    name = next(iter(getattr(config, "architectures", None) or ()), None)
    if name is None or not hasattr(transformers, name):
        raise MIRError(
            f"{checkpoint} is of the architecture {name}, which transformers "
            f"{transformers.__version__} does not have; {otherwise}"
        )
    with torch.device("meta"):
        model: nn.Module = getattr(transformers, name)(config)
    return model


def _final_norm(decoder: Decoder, size: int, checkpoint: Path) -> nn.Module:
    """The norm behind the decoder's layers, with its weights.

    Raises:
        MIRError: nothing tells which it is, or which weights are its own.
    """
    norms = {
        name: module
        for name, module in decoder.module.named_children()
        if (shapes := [p.shape for p in module.parameters()]) and all(s == (size,) for s in shapes)
    }
    if len(norms) != 1:
        raise MIRError(
            f"looked for one norm behind the decoder layers of {checkpoint}, found "
            f"{', '.join(norms) or 'none'}; write the states after the norm, with write_states"
        )
    ((name, norm),) = norms.items()
    weights = {key: _weight(checkpoint, f"{name}.{key}", size) for key, _ in norm.named_parameters()}
    norm.to_empty(device="cpu")
    norm.load_state_dict(weights)
    return norm.requires_grad_(False)


def _weight(checkpoint: Path, name: str, size: int) -> Tensor:
    """A weight [d] of the text decoder, by the end of its name."""
    found: dict[str, Tensor] = {}
    for path in sorted(checkpoint.glob(f"*{SUFFIX}")):
        with opened(path, "weights of the checkpoint") as file:
            for key in list(file.keys()):
                if f".{key}".endswith(f".{name}") and not _ELSEWHERE.search(key):
                    found[key] = file.get_tensor(key)
    if len(found) != 1:
        raise MIRError(
            f"looked for one weight {name} of the text decoder in the *{SUFFIX} of {checkpoint}, found "
            f"{', '.join(found) or 'none'}; put it alone, as {name}, into a folder with the config.json"
        )
    ((key, weight),) = found.items()
    if list(weight.shape) != [size] or not weight.isfinite().all():
        raise MIRError(
            f"{key} of {checkpoint} has shape {list(weight.shape)}, not [{size}], or is not finite"
        )
    return weight
