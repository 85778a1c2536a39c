"""Small random checkpoints of the models that the tests measure, made offline."""

import json
from pathlib import Path
from typing import Any

import torch

from mir_task.demo.checkpoint import CHAT_TEMPLATE, PASSAGES, train_tokenizer


def make_llama_vision(folder: Path) -> Path:
    """Llama 3.2 Vision: images enter by cross-attention, not as tokens."""
    from transformers import (
        MllamaConfig,
        MllamaForConditionalGeneration,
        MllamaImageProcessor,
        MllamaProcessor,
    )

    tokenizer = train_tokenizer(extra=["<|image|>"])
    config = MllamaConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "max_num_tiles": 1,
            "intermediate_layers_indices": [0],
            "supported_aspect_ratios": [[1, 1]],
            "vision_output_dim": 64,
        },
        text_config={
            **_text(tokenizer),
            "num_hidden_layers": 3,
            "cross_attention_layers": [1],
            "rope_scaling": {"rope_type": "default"},
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    processor = MllamaProcessor(
        image_processor=MllamaImageProcessor(size={"height": 28, "width": 28}, max_image_tiles=1),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE.replace("<image>", "<|image|>"),
    )
    return _save(MllamaForConditionalGeneration, config, processor, folder)


def make_qwen2_5_vl(folder: Path) -> Path:
    """Qwen2.5-VL: vision tokens by the size of the image, three-axis positions."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2TokenizerFast,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = train_tokenizer(extra=marks, kind=Qwen2TokenizerFast)
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "window_size": 56,
        },
        text_config={
            **_text(tokenizer),
            "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [2, 3, 3]},
        },
        **{
            f"{name}_token_id": tokenizer.convert_tokens_to_ids(mark)
            for name, mark in zip(("vision_start", "vision_end", "image", "video"), marks, strict=True)
        },
    )
    limits = {"min_pixels": 28 * 28, "max_pixels": 28 * 28 * 64}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**limits),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**limits),
        chat_template=CHAT_TEMPLATE.replace(
            "'<image>\n'", "'<|vision_start|><|image_pad|><|vision_end|>'"
        ),
    )
    return _save(Qwen2_5_VLForConditionalGeneration, config, processor, folder)


def make_original_llava(folder: Path) -> Path:
    """LLaVA of its own package (llava-torch), with its CLIP tower and SentencePiece model."""
    import sentencepiece
    from llava.model import LlavaLlamaForCausalLM
    from llava.model.language_model.llava_llama import LlavaConfig
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    folder.mkdir(parents=True)
    texts = [json.loads(line)["text"] for line in PASSAGES.read_text("utf-8").splitlines()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=1000,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": True, "pad_token": "<unk>"})
    )
    tower = folder / "clip"
    torch.manual_seed(0)
    CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=56,
            patch_size=14,
        )
    ).save_pretrained(tower)
    CLIPImageProcessor(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}
    ).save_pretrained(tower)
    config = LlavaConfig(
        vocab_size=1000,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        mm_vision_tower=str(tower),
        mm_hidden_size=32,
        mm_projector_type="mlp2x_gelu",
        mm_vision_select_layer=-2,
        mm_vision_select_feature="patch",
        mm_use_im_start_end=False,
        mm_use_im_patch_token=False,
        tokenizer_model_max_length=2048,
        image_aspect_ratio="pad",
    )
    LlavaLlamaForCausalLM(config).half().save_pretrained(folder)
    return folder


def _text(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _save(model_class: Any, config: Any, processor: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
