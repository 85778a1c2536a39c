"""Models on which MIR is not defined, each with its reason."""

from typing import Any

import torch

from tests.architectures import Call, Small
from tests.architectures.media import nothing, pixels

OUTSIDE = r"has no vision tokens in its text decoder's sequence \(cross-attention"
ENCODER_DECODER = (
    "is an encoder-decoder: .* by cross-attention .* no vision or audio token stands in the"
)

DAVIT = {
    "depths": [1] * 4,
    "embed_dim": [32] * 4,
    "num_heads": [2] * 4,
    "num_groups": [2] * 4,
    "patch_size": [7, 3, 3, 3],
}


def protein(config: Any, generator: torch.Generator) -> Call:
    """What Evolla sees in the place of a picture."""
    ids = torch.randint(5, 25, (1, 12), generator=generator)
    return {"protein_input_ids": ids, "protein_attention_mask": torch.ones_like(ids)}


def sees(model: Any, call: Call) -> Call:
    """Which text sees which picture, of IDEFICS-1."""
    return {"image_attention_mask": torch.ones(1, call["input_ids"].shape[1], 1).long()}


SMALL = [
    Small(
        "mllama",
        pixels(1, 1, 4, 3, 56, 56, aspect_ratio_ids=[[1]], aspect_ratio_mask=[[[1, 0, 0, 0]]]),
        {
            "vision_config": {"vision_output_dim": 128},
            "text_config": {"cross_attention_layers": [1], "rope_parameters": {}},
        },
        tokens=1,
        refused=OUTSIDE,
    ),
    Small("evolla", protein, tokens=0, refused=OUTSIDE),
    Small("idefics", pixels(1, 1, 3, 56, 56), tokens=1, more=sees, refused=OUTSIDE),
    Small("blip", pixels(), tokens=0, refused=OUTSIDE),
    Small(
        "mistral4",
        nothing,
        {"head_dim": 32},
        tokens=1,
        refused=r"has no vision tokens .* \(the image was dropped, or the model reads none\)",
        remark="A text decoder, in spite of the mapping.",
    ),
    *(
        Small(name, nothing, refused=ENCODER_DECODER)
        for name in ("pix2struct", "pp_formulanet", "t5gemma2", "udop")
    ),
    Small("florence2", nothing, {"vision_config": DAVIT}, refused=ENCODER_DECODER),
    Small(
        "vision-encoder-decoder",
        nothing,
        refused=ENCODER_DECODER,
        not_on_4="its configuration has no defaults",
    ),
    Small(
        "blip-2",
        nothing,
        {"text_config": {"model_type": "t5", "is_encoder_decoder": True}},
        refused=ENCODER_DECODER,
        remark="With T5 as its language model.",
    ),
]
