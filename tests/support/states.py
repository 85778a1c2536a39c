"""Hidden states as another engine would write them: of a model's forwards, by transformers alone."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mir_task import DocumentStates, write_states
from mir_task.capture.decoder import find_decoder
from mir_task.documents.document import Document, messages

Pairs = Iterable[tuple[str, int, Any, str]]
"""Id, row, image and text of each document."""


def forwards(
    model, processor, pairs: Pairs
) -> Iterator[tuple[str, int, torch.Tensor, list, torch.Tensor]]:
    """Id, row, token ids [L], K + 1 hidden states [L, d] and the last before the norm, a document."""
    decoder = find_decoder(model).module
    before: list[torch.Tensor] = []
    with decoder.norm.register_forward_pre_hook(lambda module, args: before.append(args[0][0])):
        for name, row, image, text in pairs:
            conversation = messages(
                Document(name, row, text, lambda row, image=image: [image]),
                "assistant_chat",
                "image",
                {},
            )
            inputs = processor.apply_chat_template(
                conversation,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                add_generation_prompt=True,
            )
            inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
            with torch.no_grad():
                output = model.eval()(**inputs, output_hidden_states=True)
            states = [state[0] for state in output.hidden_states]
            yield name, row, inputs["input_ids"][0], states, before.pop()


def write(folder: Path, model, processor, pairs: Pairs, **manifest: Any) -> Path:
    """In this package's layout, after the norm."""
    write_states(
        folder,
        (
            DocumentStates(name, ids, dict(enumerate(states)), row=row)
            for name, row, ids, states, _ in forwards(model, processor, pairs)
        ),
        last_layer="after_norm",
        vision_token_ids=[model.config.image_token_id],
        placement="assistant_chat",
        **{"model": "small", **manifest},
    )
    return folder


def write_as_vllm(folder: Path, model, processor, pairs: Pairs, *, first: int = 1) -> Path:
    """As vLLM's connector documents its files: layers in order, the last before the norm."""
    folder.mkdir(parents=True)
    for name, _, ids, states, before in forwards(model, processor, pairs):
        layers = torch.stack([*states[first:-1], before], dim=1)
        save_file({"hidden_states": layers, "token_ids": ids}, folder / f"{name}.safetensors")
        (folder / f"{name}.safetensors.lock").touch()
    return folder
