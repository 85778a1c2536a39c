"""A small random checkpoint of the original LLaVA, made offline; the others are in `tests.zoo`."""

import json
from pathlib import Path

import torch

from mir_task.demo.checkpoint import PASSAGES


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
