"""Models that read pictures of one size: as many placeholders as the encoder makes rows of one."""

import torch

from tests.architectures import Small
from tests.architectures.media import pixels
from tests.architectures.small import END, IMAGE, START

TILES = {"image_grid_pinpoints": [[56, 112], [112, 56]]}
SPARSE = {"mlp_layer_types": ["dense", "sparse", "sparse"], "num_experts_per_tok": 2}
VIT = {
    "architecture": "vit_pe_core_large_patch14_336",
    "model_args": {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": [56, 56]},
}


INDICATORS = [600, 601, 602, 603, 604]
"""Ovis2's learned marks: of an image's beginning, its parts, and its end."""


def indicated(model, call):
    """Marks around the placeholders, and one after the first four of them."""
    ids = call["input_ids"][0].tolist()
    ids = [{START: 600, END: 604}.get(token, token) for token in ids]
    ids.insert(ids.index(IMAGE) + 4, 602)
    return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long()}


def within(model, call):
    return torch.isin(call["input_ids"][0], torch.tensor([IMAGE, *INDICATORS]))


def high_res(config, generator):
    return pixels()(config, generator) | pixels(name="high_res_pixel_values")(config, generator)


SMALL = [
    Small("aya_vision", pixels()),
    Small("cohere2_vision", pixels()),
    Small("deepseek_vl", pixels()),
    Small("internvl", pixels()),
    Small("janus", pixels()),
    Small("llava", pixels()),
    Small(
        "ovis2",
        pixels(),
        {"visual_indicator_token_ids": INDICATORS},
        tokens=16,
        more=indicated,
        vision=within,
        remark="With learned marks around and between its placeholders, which count as vision.",
    ),
    Small("paligemma", pixels()),
    Small("qianfan_ocr", pixels()),
    Small("video_llava", pixels(name="pixel_values_images")),
    Small("vipllava", pixels(), {"vision_feature_layers": [-2, -1]}),
    *(
        Small(
            name,
            pixels(1, 3, 112, 112),
            {"vision_config": {"image_size": 112}},
            not_on_4="its forward gives its encoder an argument that it does not take",
        )
        for name in ("got_ocr2", "pp_chart2table")
    ),
    *(Small(name, pixels(), {"mm_tokens_per_image": 4}) for name in ("gemma3", "shieldgemma2")),
    Small(
        "fast_vlm",
        pixels(),
        {"vision_config": {"architecture": "resnet18", "hidden_size": 512, "model_args": None}},
    ),
    Small("perception_lm", pixels(1, 1, 3, 56, 56), {"vision_config": VIT}),
    Small(
        "llama4",
        pixels(),
        {"vision_config": {"intermediate_size": 128}},
        tokens=4,
        layers="language_model.model.layers",
    ),
    Small("step3p7", pixels(), {"text_config": {"sliding_window": 64}}),
    *(
        Small(name, pixels(image_sizes=[[56, 56]]))
        for name in ("lighton_ocr", "mistral3", "mistral_large4")
    ),
    *(
        Small(name, pixels(1, 1, 3, 56, 56), layers="model.text_model.layers")
        for name in ("idefics2", "idefics3", "smolvlm")
    ),
    *(
        Small(name, pixels(1, 3, 3, 56, 56, image_sizes=[[50, 112]]), TILES)
        for name in ("llava_next", "llava_next_video", "llava_onevision")
    ),
    Small(
        "granite4_vision",
        pixels(1, 3, 3, 56, 56, image_sizes=[[50, 112]]),
        {
            **TILES,
            "downsample_rate": "1/2",
            "deepstack_layer_map": [[-2, 0]],
            "spatial_target_layers": [1, 2],
            "vision_config": {"hidden_size": 128},
            "vision_feature_layer": -2,
        },
        tokens=14,
    ),
    Small("aria", pixels(), {"projector_patch_to_query_dict": {16: 4}}),
    Small("deepseek_vl_hybrid", high_res),
    Small(
        "deepseek_ocr2",
        pixels(),
        {"text_config": SPARSE, "vision_config": {"sam_config": {"downsample_channels": [32, 32]}}},
    ),
    Small(
        "unlimited_ocr", pixels(), {"vision_config": {"sam_config": {"downsample_channels": [32, 32]}}}
    ),
    Small(
        "granite_docling",
        pixels(1, 1, 3, 56, 56, pixel_attention_mask=[[True]]),
        layers="model.text_model.layers",
    ),
]
