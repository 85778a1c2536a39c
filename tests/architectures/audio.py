"""Models that hear."""

import functools
from typing import Any

import torch

from tests.architectures import Call, Small
from tests.architectures.grids import OMNI
from tests.architectures.media import nothing, pixels

Heard = functools.partial(Small, modality="audio")
mels = functools.partial(pixels, name="input_features")
waves = functools.partial(pixels, name="input_values")

SHORT = {"audio_config": {"max_source_positions": 20}}
WAVES = {"depths": [1, 1, 1], "downsampling_ratios": [8, 8], "num_filters": 4}
PHI = {"ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32, "nemo_conv_channels": 32}
KYUTAI = {
    "codec_config": {"upsample_groups": 32, "num_quantizers": 4, "codebook_size": 16},
    "num_codebooks": 4,
    "codebook_vocab_size": 17,
    "audio_pad_token_id": 600,
}


def codes(model: Any, call: Call) -> Call:
    """Kyutai's ids: of text and of the audio's codes at every position."""
    ids = call["input_ids"][0]
    return {"input_ids": torch.stack([ids, *(ids % 17 for _ in range(4))], dim=-1)[None]}


def as_long(model: Any, call: Call) -> Call:
    """Audio of as many rows as there are tokens."""
    generator = torch.Generator().manual_seed(int(call["input_ids"].sum()))
    return {"input_features": torch.randn(1, 16, 8 * call["input_ids"].shape[1], generator=generator)}


SMALL = [
    Heard(
        "fun_asr_nano",
        mels(1, 20, 16 * 7, input_features_mask=[[1] * 20]),
        {"adaptor_config": {"intermediate_size": 8}},
    ),
    Heard("glmasr", mels(1, 16, 40, input_features_mask=[[1] * 40])),
    Heard("granite_speech", mels(1, 30, 160)),
    Heard("granite_speech_plus", mels(1, 30, 160)),
    Heard(
        "kyutai_speech_to_text",
        nothing,
        KYUTAI,
        tokens=0,
        more=codes,
        refused="given 5 token ids for each position, whose rows are added up",
    ),
    Heard(
        "moss_transcribe_diarize",
        mels(1, 16, 40, input_features_mask=[[1] * 40], padding_mask=[[1] * 6400]),
        SHORT,
    ),
    Heard(
        "nemo_speechlm",
        mels(1, 40, 16, input_features_mask=[[1] * 40]),
        {"text_config": {"n_groups": 1}},
    ),
    Heard("omniasr", waves(1, 1, 4000)),
    Heard(
        "phi4_multimodal",
        pixels(1, 40, 80, name="audio_input_features", audio_embed_sizes=[5]),
        {"audio_config": PHI},
        tokens=5,
        layers="model.layers",
    ),
    Heard("qwen2_5_omni_thinker", mels(1, 16, 40, feature_attention_mask=[[1] * 40]), OMNI, tokens=10),
    Heard("qwen2_audio", mels(1, 16, 40, feature_attention_mask=[[1] * 40]), SHORT, tokens=10),
    Heard("qwen3_asr", mels(1, 16, 100, input_features_mask=[[1] * 100])),
    Heard(
        "qwen3_omni_moe_thinker", mels(1, 16, 100, feature_attention_mask=[[1] * 100]), OMNI, tokens=13
    ),
    Heard(
        "vibevoice_asr",
        waves(1, 1, 6400, sample=False),
        {f"{kind}_tokenizer_encoder_config": WAVES for kind in ("acoustic", "semantic")},
    ),
    Heard("voxtral", mels(1, 16, 40), SHORT),
    Heard(
        "voxtral_realtime",
        nothing,
        tokens=0,
        more=as_long,
        refused="no row that the decoder's layers receive is what its input embedding gives",
        remark="Adds the audio's rows to those of text.",
    ),
]
