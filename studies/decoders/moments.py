"""Sufficient statistics of an arm: moments of vision and text tokens at the decoder's input and layers.

Any distance of two Gaussians can be computed from them later: of raw tokens, of tokens after the outlier
rule, of unit-norm tokens, and (with the layers' gains) of tokens as the next layer's norm hands them on.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mir_task.metric.definition import outlier_mask, without_outliers
from studies.alignment import language
from studies.decoders.family import Examples, Reader

GROUPS = 10
"""Of documents, by their number."""
SAMPLED = 1024
"""Rows of each modality that are kept."""
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
WHOLE = 256
"""Hidden size up to which second moments are kept of each layer and group; above it of some layers."""


@torch.no_grad()
def rows_of(reader: Reader, examples: Examples, batch: int = 50) -> tuple[list[Tensor], list[Tensor]]:
    """Vision tokens [documents, tokens, d] and text tokens [documents, longest, d] of layers 0 to K.

    Text are the labelled tokens; rows after a document's last are NaN.
    """
    vision, text = [], []
    longest = max(
        sum(label != language.IGNORED for label in labels) for _, labels in examples.conversations
    )
    for rows in reader.batches(len(examples), batch):
        inputs = examples.batch(rows)
        labels = inputs.pop("labels")
        output = reader.states(**inputs, output_hidden_states=True)
        images = (inputs["input_ids"] == reader.image).to(output.last_hidden_state.device)
        layers = torch.stack(output.hidden_states, 1).float()  # [batch, K + 1, n, d]
        for row, (document, one) in enumerate(zip(layers, labels, strict=True)):
            places = (one != language.IGNORED).nonzero()[:, 0]
            padded = document.new_full((len(document), longest, document.shape[-1]), float("nan"))
            padded[:, : len(places)] = document[:, places]
            text.append(padded.cpu())
            vision.append(document[:, images[row]].cpu())
    return [list(torch.stack(each, 1)) for each in (vision, text)]  # type: ignore[return-value]


def _moments(tokens: Tensor, groups: Tensor | None) -> dict[str, np.ndarray]:
    """Number, sum and second moment of tokens [n, d], in float64 before they are kept in float32."""
    tokens = tokens.double()
    chosen = [slice(None)] if groups is None else [groups == number for number in range(GROUPS)]
    parts = [tokens[rows] for rows in chosen]
    return {
        "n": np.array([len(part) for part in parts]),
        "sum": torch.stack([part.sum(0) for part in parts]).float().numpy(),
        "second": torch.stack([part.T @ part for part in parts]).float().numpy(),
    }


def of_layer(documents: Tensor, gain: Tensor, *, second: bool, seed: int) -> dict[str, np.ndarray]:
    """Statistics of one modality at one layer.

    Args:
        documents: tokens [documents, tokens, d], NaN where there is none.
        gain: of the norm that reads this layer's output [d].
        second: whether to keep second moments.
        seed: of the sampled rows.
    """
    there = ~documents[..., 0].isnan()
    tokens = documents[there]
    groups = (torch.arange(len(documents)) % GROUPS)[:, None].expand(there.shape)[there]
    norms = tokens.norm(dim=1)
    outliers = outlier_mask(norms)
    normed = documents * documents.square().mean(-1, keepdim=True).rsqrt() * gain
    kept: dict[str, np.ndarray] = {
        "norms": np.array([norms.mean(), norms.square().mean().sqrt(), norms.var(), norms.max()]),
        "norm_quantiles": norms.quantile(torch.tensor(QUANTILES)).numpy(),
        "outliers": np.array(int(outliers.sum())),
        "document_means": documents.nanmean(1).numpy(),
        "document_means_normed": normed.nanmean(1).numpy(),
        "position_means": documents.nanmean(0).numpy(),
    }
    sampled = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))[:SAMPLED]
    kept["rows"] = tokens[sampled].numpy().astype(np.float32)
    if second:
        by = groups if tokens.shape[1] <= WHOLE else None
        for name, these in {
            "raw": tokens,
            "replaced": without_outliers(tokens, outliers, "replace"),
            "unit": torch.nn.functional.normalize(tokens, dim=1),
        }.items():
            kept |= {f"{name}.{key}": value for key, value in _moments(these, by).items()}
    return kept


def write(path: Path, reader: Reader, sets: dict[str, Examples]) -> None:
    """Write the statistics of an arm to a compressed file of NumPy.

    Args:
        path: of the file.
        reader: the pre-trained model.
        sets: examples by what their text stands after; only "own" has vision tokens kept.
    """
    decoder: Any = reader.llava.model.language_model
    ones = torch.ones(decoder.config.hidden_size)
    gains = [layer.input_layernorm.weight.detach().float().cpu() for layer in decoder.layers]
    gains.append(ones)  # the last state stands after the final norm
    found: dict[str, np.ndarray] = {"gains": torch.stack(gains).numpy()}
    for condition, examples in sets.items():
        vision, text = rows_of(reader, examples)
        for layer in range(len(gains)):
            for modality, states in {"vision": vision, "text": text}.items():
                if modality == "text" or condition == "own":
                    second = len(ones) <= WHOLE or layer in _some(len(gains))
                    kept = of_layer(
                        states[layer], gains[layer], second=second and condition == "own", seed=layer
                    )
                    prefix = f"{condition}.{modality}.{layer}"
                    found |= {f"{prefix}.{key}": value for key, value in kept.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    with unfinished.open("wb") as file:
        np.savez_compressed(file, **found)
    unfinished.rename(path)


def _some(layers: int) -> Sequence[int]:
    """The input, the first layer, both thirds' ends and the last."""
    last = layers - 1
    return sorted({0, 1, last // 3, 2 * last // 3, last})
