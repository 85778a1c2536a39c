"""Models of layouts of their own: no placeholders, masks in their place, or parts elsewhere."""

import torch

from tests.architectures import Small
from tests.architectures.grids import GEMMA4, OMNI, POSITIONS
from tests.architectures.media import patches, pixels
from tests.architectures.small import IMAGE


def position_mask(model, call):
    return {"image_embeds_position_mask": (call["input_ids"] == IMAGE).long()}


def by_mask(model, call):
    return call["image_embeds_position_mask"][0].bool()


def before_the_text(model, call):
    """GIT's sequence: the picture's patches and its class token, then the text."""
    return torch.arange(17 + call["input_ids"].shape[1]) < 17


def flattened(config, generator):
    """Patches of Kosmos-2.5, each after its row and column."""
    rows = torch.randn(1, 16, 34, generator=generator)
    rows[0, :, 0], rows[0, :, 1] = torch.arange(16) // 4 + 1, torch.arange(16) % 4 + 1
    return {"flattened_patches": rows, "width": torch.tensor([56]), "height": torch.tensor([56])}


SMALL = [
    Small(
        "kosmos-2",
        pixels(),
        {"latent_query_num": 4},
        tokens=4,
        layers="text_model.model.layers",
        more=position_mask,
        vision=by_mask,
        remark="By the mask that the model is given.",
    ),
    Small(
        "git",
        pixels(),
        tokens=0,
        layers="git.encoder.layer",
        decoder="git",
        vision=before_the_text,
        remark="Pictures stand before the text and have no placeholders.",
    ),
    Small(
        "kosmos-2.5",
        flattened,
        {"latent_query_num": 4},
        tokens=4,
        layers="text_model.model.layers",
        more=position_mask,
        vision=by_mask,
        remark="By the mask that the model is given.",
    ),
    Small(
        "fuyu", pixels(1, 4, 588, name="image_patches"), tokens=4, layers="model.language_model.layers"
    ),
    Small(
        "phi4_multimodal",
        pixels(
            1,
            2,
            3,
            448,
            448,
            name="image_pixel_values",
            image_sizes=[[448, 448]],
            image_attention_mask=[[[[1] * 32] * 32] * 2],
        ),
        tokens=545,
        layers="model.layers",
    ),
    Small("blip-2", pixels(), layers="language_model.model.decoder.layers", tokens=4),
    Small(
        "instructblip",
        pixels(qformer_input_ids=[[1, 2, 3]]),
        layers="language_model.model.decoder.layers",
        tokens=4,
    ),
    Small(
        "instructblipvideo",
        pixels(1, 2, 3, 56, 56, qformer_input_ids=[[1, 2, 3]]),
        layers="language_model.model.decoder.layers",
        tokens=8,
        modality="video",
    ),
    Small(
        "pi0",
        pixels(
            1,
            1,
            3,
            56,
            56,
            state=[[0.5] * 32],
            pixel_attention_mask=[[True]],
            noise=[[[0.1] * 32] * 4],
            timestep=[0.5],
        ),
        {"chunk_size": 4},
        tokens=16,
        layers="model.vlm.language_model.layers",
    ),
    Small(
        "diffusion_gemma",
        pixels(1, 36, 588, image_position_ids=[POSITIONS]),
        GEMMA4,
        tokens=4,
        layers="model.encoder.language_model.layers",
        remark="Measured on the part that reads the prompt; another writes.",
    ),
    Small(
        "qwen2_5_omni",
        patches(),
        {"thinker_config": OMNI, "enable_audio_output": False},
        layers="thinker.model.language_model.layers",
        remark="By its thinker.",
    ),
    Small(
        "qwen3_omni_moe",
        patches(),
        {
            "thinker_config": OMNI,
            "talker_config": {
                "spatial_merge_size": 2,
                "text_config": {"shared_expert_intermediate_size": 32},
            },
        },
        layers="thinker.model.language_model.layers",
        remark="By its thinker.",
    ),
]
