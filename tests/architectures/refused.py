"""Models on which MIR is not defined, each with its reason."""

from tests.architectures import Small
import torch

from tests.architectures.media import pixels


def nothing(config, generator):
    return {}


def protein(config, generator):
    ids = torch.randint(5, 25, (1, 12), generator=generator)
    return {"protein_input_ids": ids, "protein_attention_mask": torch.ones_like(ids)}


def sees(model, call):
    """Which text sees which picture, of IDEFICS-1."""
    return {"image_attention_mask": torch.ones(1, call["input_ids"].shape[1], 1).long()}


ENCODER_DECODERS = ("florence2", "udop", "t5gemma2", "pix2struct", "pp_formulanet", "vision-encoder-decoder")

SMALL = [
    Small("mllama", pixels(1, 1, 4, 3, 56, 56, aspect_ratio_ids=[[1]], aspect_ratio_mask=[[[1, 0, 0, 0]]]), {"vision_config": {"vision_output_dim": 128}}, tokens=1),
    Small("evolla", protein, tokens=0),
    Small("idefics", pixels(1, 1, 3, 56, 56), tokens=1, more=sees),
    Small("blip", pixels(), tokens=0),
    Small("mistral4", nothing, {"head_dim": 32}, tokens=1),
    *(Small(name, nothing, tokens=0) for name in ENCODER_DECODERS),
]
