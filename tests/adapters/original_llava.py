"""LLaVA of its own package (llava-torch), which runs beside transformers 4 only."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mir_task.demo.checkpoint import PASSAGES
from tests import adapters

IMAGE = -200
ARGUMENTS = {"device_map": "auto", "model_name": "llava-small"}


def original_llava(folder: Path) -> Path:
    """LLaVA with its CLIP tower and SentencePiece model: 16 vision tokens an image."""
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


def states(model: Any, call: adapters.Call) -> list[Tensor]:
    """Hidden states; the package loads the vision tower apart from the model, in float32."""
    tower = model.get_vision_tower()
    if not tower.is_loaded:
        tower.load_model()
    return adapters.hidden_states(model, {name: call[name] for name in ("input_ids", "images")})


def vision(model: Any, call: adapters.Call) -> Tensor:
    """The 16 positions into which the model unfolds the placeholder."""
    ids = call["input_ids"][0]
    start = ids.tolist().index(IMAGE)
    positions = torch.zeros(len(ids) + 15, dtype=torch.bool)
    positions[start : start + 16] = True
    return positions


ROWS = [
    adapters.Row(
        "llava",
        "simple",
        "LlavaLlamaForCausalLM",
        original_llava,
        arguments=ARGUMENTS,
        dtype=torch.float16,
        states=states,
        vision=vision,
        count=(56 // 14) ** 2,
        package="llava.model",
        rule="provenance",
        reason="`pip install --no-deps llava-torch`; its model sees the ids of the text alone.",
    )
]
