"""Small random models of any architecture of transformers: its default configuration, shrunk by name."""

import functools
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

LAYERS = 3
WIDTH = 32
HEADS = 2
VOCABULARY = 640
"""A bit more than the tokenizer's."""
IMAGE, VIDEO, AUDIO, START, END = range(VOCABULARY - 5, VOCABULARY)
"""Ids of placeholders and of the marks around them, behind those of the tokenizer."""

DEPTHS = ("num_hidden_layers", "layers", "num_layers", "depth", "n_layers", "encoder_layers")

SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "embed_dim", "hidden_dim", "n_embd", "width"), WIDTH),
    **dict.fromkeys(("out_hidden_size", "text_hidden_size", "encoder_hidden_size"), WIDTH),
    **dict.fromkeys(("output_dim", "projection_dim", "word_embed_proj_dim", "output_channels"), WIDTH),
    **dict.fromkeys(("vision_output_dim", "projector_input_dim", "projector_output_dim"), WIDTH),
    **dict.fromkeys(("decoder_hidden_size", "pooler_output_size", "image_text_hidden_size"), WIDTH),
    **dict.fromkeys(("patch_embed_hidden_size", "thinker_hidden_size", "vision_hidden_size"), WIDTH),
    **dict.fromkeys(("embedding_size", "image_token_embed_dim", "audio_hidden_size"), WIDTH),
    **dict.fromkeys(("hidden_size_per_layer_input", "downsample_hidden_size"), 16),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"), 64),
    **dict.fromkeys(("d_ff", "mlp_dim", "projector_hidden_size", "projection_hidden_size"), 64),
    **dict.fromkeys(("alignment_intermediate_size", "intermediate_size_mlp", "merged_hidden_size"), 64),
    **dict.fromkeys(("dense_intermediate_size", "shared_intermediate_size", "moe_hidden_size"), 32),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "share_expert_dim"), 32
    ),
    **dict.fromkeys(("shared_experts_intermediate_size", "moe_shared_expert_intermediate_size"), 32),
    **dict.fromkeys((*DEPTHS, "decoder_layers", "num_decoder_layers", "num_blocks"), LAYERS),
    **dict.fromkeys(("conf_num_hidden_layers", "resampler_depth"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "attention_heads", "resampler_n_heads"), HEADS),
    **dict.fromkeys(
        ("encoder_attention_heads", "decoder_attention_heads", "num_key_value_heads"), HEADS
    ),
    **dict.fromkeys(("swa_num_attention_heads", "swa_num_key_value_heads", "index_n_heads"), HEADS),
    **dict.fromkeys(("num_sliding_attention_heads", "linear_num_heads", "mamba_num_heads"), HEADS),
    **dict.fromkeys(
        ("linear_num_key_heads", "linear_num_value_heads", "num_global_key_value_heads"), HEADS
    ),
    **dict.fromkeys(("head_dim", "swa_head_dim", "global_head_dim", "v_head_dim", "d_kv"), 16),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "index_head_dim", "dim_head"), 16),
    **dict.fromkeys(("mamba_head_dim", "resampler_head_dim", "ssm_state_size", "rotary_dim"), 16),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "laurel_rank", "query_pre_attn_scalar"), 16),
    "qk_head_dim": 32,
    **dict.fromkeys(("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts"), 4),
    "num_experts_per_tok": 2,
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("max_position_embeddings", "max_source_positions"), 2048),
    "num_query_tokens": 4,
    "num_mel_bins": 16,
    "image_size": 56,
    "patch_size": 14,
    "original_max_position_embeddings": 2048,
    "attention_chunk_size": 8192,
}
"""By the name of a setting, wherever in a configuration it stands with a number."""

IDS = {
    "image_token": IMAGE,
    "video_token": VIDEO,
    "audio_token": AUDIO,
    "start_token": START,
    "boi_token": START,
    "boa_token": START,
    "end_token": END,
    "eoi_token": END,
    "eoa_token": END,
    "bos_token": 1,
    "eos_token": 2,
    "pad_token": 0,
}
"""By a part of the name of an id."""

ABSENT_IDS = [f"{kind}_token_{end}" for kind in ("image", "video", "audio") for end in ("id", "index")]
"""That some classes leave to their checkpoints."""


def settings(config_class: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Of a small model: the defaults of a class, shrunk, with changes that may be nested."""
    return merged(shrunk(config_class().to_dict()), changes)


def shrunk(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings with small numbers."""
    depth = next((n for name in DEPTHS if (n := defaults.get(name)) is not None), None)
    return {name: _small(name, value, depth) for name, value in defaults.items()}


def _small(name: str, value: Any, depth: int | None) -> Any:
    if name == "rope_parameters" and isinstance(value, Mapping):
        return _rope(value)
    if name == "per_layer_config":
        return None
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return shrunk(value)
    if isinstance(value, list | tuple) and depth and len(value) == depth and depth > LAYERS:
        # One for each layer, so that each kind comes.
        kinds = list(dict.fromkeys(value))
        return [kinds[number % len(kinds)] for number in range(LAYERS)]
    if name.endswith(("_indexes", "_indices")) and isinstance(value, list | tuple):
        return list(range(min(len(value), LAYERS)))
    if name in ("image_size", "patch_size") and isinstance(value, list | tuple):
        return [SIZES[name]] * len(value)
    if value is None and name in ABSENT_IDS:
        return IDS[name.rpartition("_")[0]]
    if isinstance(value, bool) or not isinstance(value, int) or value == 0:
        return value
    if name in SIZES:
        return SIZES[name]
    for part, token_id in IDS.items():
        if name in (f"{part}_id", f"{part}_index"):
            return token_id
    if name.endswith(("_token_id", "_token_index")):
        # Another each, below the vocabulary.
        return VOCABULARY - 6 - zlib.crc32(name.encode()) % 60
    return value


def _rope(parameters: Mapping[str, Any]) -> dict[str, Any]:
    if any(isinstance(value, Mapping) for value in parameters.values()):
        return {name: _rope(value) if value else value for name, value in parameters.items()}
    kept = {**parameters}
    if "mrope_section" in kept:
        kept["mrope_section"] = [2, 3, 3]
    return kept


def merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with changes, of which nested ones change parts."""
    out = dict(settings)
    for name, value in changes.items():
        if name == "rope_parameters" and "rope_scaling" in out and name not in out:  # transformers 4
            name, value = "rope_scaling", {"rope_type": "default", "type": "default", **value}
        nested = isinstance(value, Mapping) and isinstance(out.get(name), Mapping)
        out[name] = merged(out[name], value) if nested else value
    return out


def build(model_class: Any, config: Any, dtype: torch.dtype) -> nn.Module:
    """A model with random weights, the same every time, and none of zeros where its class has some."""
    torch.manual_seed(0)
    model = model_class._from_config(config, dtype=dtype).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.isfinite().all() or not parameter.any():  # which its class leaves unset
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model


@functools.cache
def tokenizer() -> Any:
    """Of all small models."""
    from mir_task.demo.checkpoint import train_tokenizer

    return train_tokenizer(600)
