"""Models whose pictures become tokens of the vocabulary, embedded as text is."""

from tests.architectures import Small
from tests.architectures.media import pixels
from tests.architectures.small import IMAGE

CODES = 32
"""Of a picture's parts, as ids of the vocabulary from `FIRST_CODE` on."""
LETTERS = "ABCDEFGHIJ"
FIRST_CODE = 560
VQ = {"channel_multiplier": [1, 2], "base_channels": 32, "num_res_blocks": 1, "embed_dim": 16}

SMALL = [
    Small(
        "chameleon",
        pixels(1, 3, 16, 16),
        {
            "vocabulary_map": {
                "<image>": IMAGE,
                **{f"IMGIMG{LETTERS[n // 10]}{LETTERS[n % 10]}Z": FIRST_CODE + n for n in range(CODES)},
            },
            "vq_config": {**VQ, "num_embeddings": CODES, "latent_channels": 16, "resolution": 16},
        },
        layers="model.layers",
    ),
    Small(
        "emu3",
        pixels(1, 3, 16, 16, image_sizes=[[16, 16]]),
        {
            "image_token_id": None,
            "vocabulary_map": {
                "<image>": IMAGE,
                "<|extra_200|>": 600,
                **{f"<|visual token {n:06d}|>": FIRST_CODE + n for n in range(CODES)},
            },
            "vq_config": {
                **VQ,
                "codebook_size": CODES,
                "latent_channels": 16,
                "attn_resolutions": [],
                "hidden_size": 64,
            },
        },
        layers="model.text_model.layers",
        remark="Without the placeholder's id in its configuration.",
        not_on_4="its forward drops the picture on the way",
    ),
    Small(
        "apertus1p5",
        pixels(1, 3, 32, 32, image_sizes=[[32, 32]]),
        {
            "image_token_offset": FIRST_CODE,
            "audio_token_offset": 592,
            "vision_config": {**VQ, "codebook_size": CODES, "latent_channels": 16, "resolution": 32},
            "audio_config": {"codebook_size": 8, "codebook_dim": 32, "num_filters": 8},
        },
    ),
]
