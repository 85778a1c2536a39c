"""Models that read pictures of any size as a grid of patches."""

from tests.architectures import Small
from tests.architectures.media import patches, pixels
from tests.architectures.small import END, IMAGE, START, VOCABULARY

MROPE = {"text_config": {"rope_parameters": {"mrope_section": [2, 3, 3]}}}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
POSITIONS = [[x, y] for y in range(6) for x in range(6)]
OMNI = {**MROPE, "vision_start_token_id": START}

STREAMS = "pass on 4 streams of states for each token, .* the paper says nothing of several"

LOOPED = {
    "text_config": {
        "loop_layer_index_start": 1,
        "loop_layer_index_end": 2,
        "n_layers_per_attn_res_block": 1,
    }
}
VISION = {
    "model_type": "gemma4_vision",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "position_embedding_size": 256,
    "patch_size": 14,
}
GEMMA4 = {
    "vision_config": VISION,
    "text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
}

SMALL = [
    *(
        Small(name, patches())
        for name in (
            "cosmos3_edge",
            "cosmos3_omni",
            "exaone4_5",
            "hyperclovax_vision_v2",
            "lfm3_vl",
            "minimax_m3_vl",
            "qwen3_5",
            "qwen3_5_moe",
        )
    ),
    *(
        Small(name, patches(), MROPE)
        for name in (
            "glm46v",
            "glm4v",
            "glm_ocr",
            "glmga",
            "qwen2_5_vl",
            "qwen2_vl",
            "qwen3_vl",
            "qwen3_vl_moe",
        )
    ),
    *(Small(name, patches(), OMNI) for name in ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker")),
    Small("video_llama_3", patches(image_merge_sizes=[2])),
    Small(
        "nemotron_h_omni",
        pixels(16, 588, image_grid_hw=[[4, 4]]),
        {"text_config": {"n_groups": 1}},
        layers="language_model.model.layers",
    ),
    *(
        Small(name, pixels(1, 3, 14, 16 * 14, target_sizes=[[4, 4]]))
        for name in ("minicpm_ocr", "minicpmv4_6", "minicpmv4_7")
    ),
    Small("lfm2_vl", pixels(1, 16, 588, spatial_shapes=[[4, 4]], pixel_attention_mask=[[1] * 16])),
    Small(
        "ernie4_5_vl_moe",
        patches(),
        {"text_config": {"rope_parameters": {"mrope_section": [3, 3, 2]}, "moe_k": 2}},
    ),
    Small("glm4v_moe", patches(), {"text_config": {"rope_parameters": {"mrope_section": [1, 1, 2]}}}),
    Small("cohere_compass", patches(), {"text_config": {"rope_parameters": {"full_attention": ROPE}}}),
    Small("hunyuan_vl", patches(), {"text_config": {"head_dim": 16, "rope_parameters": ROPE}}),
    *(Small(name, patches(), refused=STREAMS) for name in ("glm5_next", "hy_v4_vl")),
    Small(
        "dots3_note",
        patches(),
        {
            "text_config": {"layer_types": ["indexed_attention"] * 3, "per_layer_config": {}},
            "vision_config": {"adapter_in_dim": 32, "adapter_out_dim": 32},
            "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
        },
    ),
    Small("inkling2", pixels(4, 28, 28, 3, image_grid_thw=[[1, 2, 2]])),
    Small(
        "inkling2_loop",
        pixels(4, 28, 28, 3, image_grid_thw=[[1, 2, 2]]),
        LOOPED,
        refused="ran 5 of its 3 layers in one forward",
        remark="Its layers run several times.",
    ),
    *(
        Small(name, patches(width=1176), {"out_hidden_size": 128})
        for name in ("muse_glimmer", "muse_spark")
    ),
    Small("inkling_mm_model", pixels(4, 2, 14, 14, 3)),
    Small("paddleocr_vl", pixels(16, 3, 14, 14, image_grid_thw=[[1, 4, 4]]), MROPE),
    Small("kimi_k25", pixels(16, 3, 14, 14, image_grid_thw=[[1, 4, 4]]), {"projection_hidden_size": 32}),
    Small(
        "qwen4_exp",
        patches(),
        {
            "text_config": {
                "indexer_n_heads": 2,
                "indexer_kv_heads": 1,
                "indexer_head_dim": 16,
                "indexer_budget": 64,
                "indexer_compress_ratio": 4,
                "hc_lowrank": 8,
            }
        },
        refused=STREAMS,
    ),
    Small(
        "molmo2",
        pixels(
            1,
            16,
            588,
            image_token_pooling=[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]],
            image_grids=[[2, 2, 0, 0]],
            image_num_crops=[1],
        ),
        {
            "initializer_range": 0.2,
            "adapter_config": {"vision_feature_layer": [1, 0], "initializer_range": 0.2},
            "image_patch_id": IMAGE,
            "vision_config": {"image_size": [56, 56], "num_position_embeddings": 16},
        },
    ),
    Small("gemma4", pixels(1, 36, 588, image_position_ids=[POSITIONS]), GEMMA4),
    Small(
        "gemma4_unified",
        pixels(1, 4, 3 * 42 * 42, image_position_ids=[[[0, 0], [0, 1], [1, 0], [1, 1]]]),
        {
            "vision_config": {
                "patch_size": 14,
                "mm_embed_dim": 32,
                "mm_posemb_size": 16,
                "output_proj_dims": 32,
            }
        },
    ),
    Small(
        "gemma3n",
        pixels(),
        {
            "text_config": {"num_kv_shared_layers": 1},
            "vision_config": {
                "architecture": "resnet18",
                "hidden_size": 512,
                "model_args": None,
                "vocab_offset": END,
                "vocab_size": 1,
            },
            "audio_config": {"vocab_offset": VOCABULARY},
            "vision_soft_tokens_per_image": 4,
        },
        refused=STREAMS,
        remark="Its end-of-image row is of the vision vocabulary.",
    ),
]
