import os

# Before anything imports the harness or the hub client.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import json
from pathlib import Path

import numpy as np
import pytest
import torch

DATA = Path(__file__).parent / "data"


class Oracle:
    """Features of one oracle file and what float64 arithmetic and the published code make of them."""

    def __init__(self, name: str) -> None:
        arrays = np.load(DATA / "oracle" / f"{name}.npz")
        self.name = name
        self.vision = torch.from_numpy(arrays["vision"])
        self.text = torch.from_numpy(arrays["text"])
        self.expected = json.loads((DATA / "oracle" / "expected.json").read_text())[name]


@pytest.fixture(params=["full_rank", "rank_deficient", "aligned"])
def oracle(request: pytest.FixtureRequest) -> Oracle:
    return Oracle(request.param)


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small LLaVA checkpoint: 3 decoder layers of 64 dimensions, 16 vision tokens an image."""
    from mir_task.demo.checkpoint import make_llava

    folder = tmp_path_factory.mktemp("checkpoints") / "llava"
    return make_llava(folder, hidden_size=64, layers=3, image_size=56)


@pytest.fixture(scope="session")
def llama_vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama 3.2 Vision checkpoint: images enter by cross-attention, not as tokens."""
    from tokenizers import AddedToken
    from transformers import (
        MllamaConfig,
        MllamaForConditionalGeneration,
        MllamaImageProcessor,
        MllamaProcessor,
    )

    from mir_task.demo.checkpoint import CHAT_TEMPLATE, train_tokenizer

    tokenizer = train_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|image|>", special=True)]})
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
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "cross_attention_layers": [1],
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "rope_scaling": {"rope_type": "default"},
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    folder = tmp_path_factory.mktemp("checkpoints") / "llama_vision"
    torch.manual_seed(0)
    MllamaForConditionalGeneration(config).save_pretrained(folder)
    MllamaProcessor(
        image_processor=MllamaImageProcessor(size={"height": 28, "width": 28}, max_image_tiles=1),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE.replace("<image>", "<|image|>"),
    ).save_pretrained(folder)
    return folder
